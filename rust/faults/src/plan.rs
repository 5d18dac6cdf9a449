//! Which scripts a connection gets: the same for all, for the first one only, or drawn from a seed. The
//! scripts of connection `n` depend on nothing but the plan and `n`.

use std::time::Duration;

use fastrand::Rng;

use crate::script::{Corruption, Cut, Fault, Script};

/// The scripts of both directions of a connection. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scripts {
    /// From the side that connected to the target.
    pub to_server: Script,
    /// From the target to the side that connected.
    pub to_client: Script,
}

impl Scripts {
    /// A script for one direction; the other one changes nothing.
    #[must_use]
    pub fn of(direction: Direction, script: Script) -> Self {
        match direction {
            Direction::ToServer => Self { to_server: script, ..Self::default() },
            Direction::ToClient => Self { to_client: script, ..Self::default() },
        }
    }

    /// The same script for both directions.
    #[must_use]
    pub fn both(script: Script) -> Self {
        Self { to_server: script.clone(), to_client: script }
    }
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the side that connected to the target.
    ToServer,
    /// From the target to the side that connected.
    ToClient,
}

/// Which scripts the connections of a proxy get, counted from 0 from when the plan was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Each the same.
    Every(Scripts),
    /// The first one these, those after it none.
    First(Scripts),
    /// Each its own, drawn from the seed and the connection's number.
    Drawn {
        /// What everything is drawn from.
        seed: u64,
        /// What there is to draw.
        menu: Menu,
    },
}

impl Default for Plan {
    /// Nothing is changed.
    fn default() -> Self {
        Self::Every(Scripts::default())
    }
}

/// What the scripts of a direction are drawn from. The default draws scripts that change nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Menu {
    /// Longest delay. Default none.
    pub delay_max: Duration,
    /// Longest jitter. Default none.
    pub jitter_max: Duration,
    /// Largest slice in bytes; each direction draws from 1 up to this, evenly over magnitudes. Default 0: no
    /// slices.
    pub slice_max: usize,
    /// Of a hundred directions, how many are cut. Default 0.
    pub cut_percent: u8,
    /// How they are cut. Default in no way.
    pub cuts: Vec<Fault>,
    /// Cuts and corruptions come before this byte. Default 0: at the very first one.
    pub cut_before: u64,
    /// Of a hundred directions, how many have one byte changed. Default 0.
    pub corrupt_percent: u8,
}

impl Plan {
    /// The scripts of the connection of this number.
    #[must_use]
    pub fn scripts(&self, connection: u64) -> Scripts {
        match self {
            Self::Every(scripts) => scripts.clone(),
            Self::First(scripts) if connection == 0 => scripts.clone(),
            Self::First(_) => Scripts::default(),
            Self::Drawn { seed, menu } => {
                // Far apart for neighbouring numbers, so that neither seeds nor connections resemble each other.
                let mut dice = Rng::with_seed(seed ^ (connection + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                Scripts { to_server: menu.draw(&mut dice), to_client: menu.draw(&mut dice) }
            }
        }
    }
}

impl Menu {
    fn draw(&self, dice: &mut Rng) -> Script {
        let up_to = |dice: &mut Rng, most: Duration| {
            Duration::from_nanos(dice.u64(..=u64::try_from(most.as_nanos()).unwrap_or(u64::MAX)))
        };
        let mut script = Script {
            delay: up_to(dice, self.delay_max),
            jitter: up_to(dice, self.jitter_max),
            seed: dice.u64(..),
            ..Script::slices(self.draw_slice(dice))
        };
        let position = |dice: &mut Rng| dice.u64(..self.cut_before.max(1));
        if dice.u8(..100) < self.cut_percent
            && let Some(fault) = dice.choice(self.cuts.iter().copied())
        {
            script.cut = Some(Cut { at: position(dice), fault });
        }
        if dice.u8(..100) < self.corrupt_percent {
            script.corrupt.push(Corruption { at: position(dice), mask: dice.u8(1..) });
        }
        script
    }

    /// A power of two up to the largest, and then a size below it: single bytes must come up often.
    fn draw_slice(&self, dice: &mut Rng) -> usize {
        if self.slice_max == 0 {
            return 0;
        }
        let magnitude = dice.u32(..=self.slice_max.ilog2());
        dice.usize(1..=1 << magnitude).min(self.slice_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn menu() -> Menu {
        Menu {
            delay_max: Duration::from_millis(4),
            jitter_max: Duration::from_millis(2),
            slice_max: 5000,
            cut_percent: 50,
            cuts: vec![Fault::Reset, Fault::HalfClose, Fault::BlackHole],
            cut_before: 1000,
            corrupt_percent: 10,
        }
    }

    #[test]
    fn a_seed_draws_the_same_scripts_again_and_others_draw_others() {
        let drawn = |seed| {
            let plan = Plan::Drawn { seed, menu: menu() };
            (0..50).map(|connection| plan.scripts(connection)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        assert_ne!(drawn(7)[0], drawn(7)[1]);
    }

    #[test]
    fn what_is_drawn_is_on_the_menu_and_all_of_the_menu_is_drawn() {
        let plan = Plan::Drawn { seed: 1, menu: menu() };
        let scripts: Vec<Script> = (0..500)
            .flat_map(|connection| {
                let Scripts { to_server, to_client } = plan.scripts(connection);
                [to_server, to_client]
            })
            .collect();
        for script in &scripts {
            assert!(script.delay <= Duration::from_millis(4) && script.jitter <= Duration::from_millis(2));
            assert!(script.slice.is_some_and(|slice| slice.get() <= 5000));
            assert!(script.cut.is_none_or(|cut| cut.at < 1000));
            assert!(script.corrupt.iter().all(|change| change.at < 1000 && change.mask != 0));
        }
        for fault in menu().cuts {
            assert!(scripts.iter().any(|script| script.cut.is_some_and(|cut| cut.fault == fault)));
        }
        let cut = scripts.iter().filter(|script| script.cut.is_some()).count();
        let corrupt = scripts.iter().filter(|script| !script.corrupt.is_empty()).count();
        assert!((400..600).contains(&cut) && (50..200).contains(&corrupt), "{cut} cut, {corrupt} corrupt");
        let single = scripts.iter().filter(|script| script.slice.is_some_and(|slice| slice.get() == 1));
        assert!(single.count() > 50, "slices of one byte come up");
    }

    #[test]
    fn the_first_connection_alone_gets_the_scripts_of_first() {
        let scripts = Scripts::of(Direction::ToClient, Script::slices(1));
        let plan = Plan::First(scripts.clone());
        assert_eq!(plan.scripts(0), scripts);
        assert_eq!(plan.scripts(1), Scripts::default());
        assert_eq!(Plan::Every(scripts.clone()).scripts(9), scripts);
        assert_eq!(Plan::default().scripts(0), Scripts::default());
        let nothing = Plan::Drawn { seed: 3, menu: Menu::default() }.scripts(0);
        assert_eq!(Script { seed: 0, ..nothing.to_server }, Script::default());
    }
}
