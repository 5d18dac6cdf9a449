//! Taking an instance out of the choice that keeps losing its link under calls, and letting it back in by one
//! call at a time. Pure: time comes in.
//!
//! ```text
//!        5 losses in a row            pause over, one call goes there
//!   In ────────────────────▶ Out ────────────────────────▶ Probing
//!    ▲                        ▲                               │
//!    │                        └──────────── lost ─────────────┤
//!    └────────────────────────────────── answered ────────────┘
//! ```

/// Losses in a row after which an instance is ejected. Envoy's and Finagle's figure.
const LOSSES_MAX: u32 = 5;
/// The first pause, and the longest; each ejection in a row doubles it.
const PAUSE_MS: u64 = 1_000;
const PAUSE_MAX_MS: u64 = 60_000;

/// Whether an instance may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Like any other.
    In,
    /// Only if there is no other.
    Out,
    /// By one call, which shows how it is.
    Probe,
}

/// What is remembered of one instance.
#[derive(Debug, Default)]
pub(super) struct Ejection {
    losses: u32,
    /// Ejections since it last answered well.
    ejections: u32,
    /// Until when it is out; `None` while it is in.
    until_ms: Option<u64>,
    probing: bool,
}

impl Ejection {
    pub(super) const fn standing(&self, now_ms: u64) -> Standing {
        match self.until_ms {
            None => Standing::In,
            Some(until_ms) if now_ms < until_ms || self.probing => Standing::Out,
            Some(_) => Standing::Probe,
        }
    }

    /// Its link was lost with calls on it. True when that ejects it.
    pub(super) fn lost(&mut self, now_ms: u64) -> bool {
        self.probing = false;
        self.losses += 1;
        if self.until_ms.is_none() && self.losses < LOSSES_MAX {
            return false;
        }
        let pause_ms = PAUSE_MS.saturating_mul(1 << self.ejections.min(16)).min(PAUSE_MAX_MS);
        self.until_ms = Some(now_ms.saturating_add(pause_ms));
        self.ejections += 1;
        true
    }

    /// A call goes there that shows how it is. False when another does already.
    pub(super) const fn probe(&mut self) -> bool {
        !std::mem::replace(&mut self.probing, true)
    }

    /// It has opened a stream: it is back, but one more loss ejects it again.
    pub(super) const fn answered(&mut self) {
        if self.until_ms.take().is_some() {
            self.losses = LOSSES_MAX - 1;
        }
        self.probing = false;
    }

    /// The probe was given up before it had an answer.
    pub(super) const fn probe_dropped(&mut self) {
        self.probing = false;
    }

    /// A stream ended otherwise than by a loss.
    pub(super) const fn ended_well(&mut self) {
        if self.until_ms.is_none() {
            self.losses = 0;
            self.ejections = 0;
        }
    }

    /// Whether there is anything to forget.
    pub(super) const fn is_clean(&self) -> bool {
        self.losses == 0 && self.ejections == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ejected(now_ms: u64) -> Ejection {
        let mut ejection = Ejection::default();
        for loss in 1..=LOSSES_MAX {
            assert_eq!(ejection.lost(now_ms), loss == LOSSES_MAX);
        }
        ejection
    }

    #[test]
    fn the_fifth_loss_in_a_row_ejects() {
        let ejection = ejected(10);
        assert_eq!(ejection.standing(10), Standing::Out);
        assert_eq!(ejection.standing(10 + PAUSE_MS - 1), Standing::Out);
        assert_eq!(ejection.standing(10 + PAUSE_MS), Standing::Probe);
    }

    #[test]
    fn a_stream_that_ends_well_forgets_earlier_losses() {
        let mut ejection = Ejection::default();
        for _ in 0..100 {
            assert!((1..LOSSES_MAX).all(|_| !ejection.lost(0)));
            ejection.ended_well();
            assert!(ejection.is_clean());
        }
        assert_eq!(ejection.standing(0), Standing::In);
    }

    #[test]
    fn one_call_at_a_time_probes() {
        let mut ejection = ejected(0);
        assert!(ejection.probe());
        assert!(!ejection.probe());
        assert_eq!(ejection.standing(PAUSE_MS), Standing::Out);
        ejection.probe_dropped();
        assert_eq!(ejection.standing(PAUSE_MS), Standing::Probe);
    }

    #[test]
    fn an_answer_brings_it_back_and_one_more_loss_ejects_it_for_longer() {
        let mut ejection = ejected(0);
        assert!(ejection.probe());
        ejection.answered();
        assert_eq!(ejection.standing(PAUSE_MS), Standing::In);
        assert!(ejection.lost(PAUSE_MS));
        assert_eq!(ejection.standing(3 * PAUSE_MS - 1), Standing::Out);
        assert_eq!(ejection.standing(3 * PAUSE_MS), Standing::Probe);
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let mut ejection = ejected(0);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            assert!(ejection.lost(0));
            pauses.push(ejection.until_ms.unwrap());
        }
        assert_eq!(pauses[..6], [2_000, 4_000, 8_000, 16_000, 32_000, 60_000]);
        assert!(pauses[6..].iter().all(|&pause| pause == PAUSE_MAX_MS));
    }

    #[test]
    fn streams_that_end_while_it_is_out_do_not_bring_it_back() {
        let mut ejection = ejected(0);
        ejection.ended_well();
        assert_eq!(ejection.standing(0), Standing::Out);
        assert!(!ejection.is_clean());
    }
}
