//! How long a batch of a given size will take: a line through the times of past batches, of which later ones
//! weigh more.

/// Batches that must have been measured before anything is predicted.
const MEASURED_MIN: u32 = 10;

/// What a batch weighs when the next one comes: the last twenty or so decide.
const FADE: f64 = 0.95;

/// Deviations that are added to the line. The mean would let half of those pass that are just not to be met.
const DEVIATIONS: f64 = 2.0;

/// While nothing runs, the estimate halves in this time: one slow batch must not be believed for ever.
const HALF_LIFE_NS: f64 = 1e9;

/// Relative variance of sizes below which they tell nothing about the slope.
const SPREAD_MIN: f64 = 1e-9;

#[derive(Clone, Debug, Default)]
pub(super) struct Estimate {
    measured: u32,
    weight: f64,
    sizes: f64,
    times: f64,
    squares: f64,
    products: f64,
    deviation: f64,
}

impl Estimate {
    /// A batch of `size` items took `time_ns`.
    pub(super) fn record(&mut self, size: usize, time_ns: u64) {
        let (size, time) = (size as f64, time_ns as f64);
        if self.measured > 0 {
            let error = (time - self.line(size)).abs();
            self.deviation = self.deviation * FADE + error * (1.0 - FADE);
        }
        self.measured = self.measured.saturating_add(1);
        self.weight = self.weight * FADE + 1.0;
        self.sizes = self.sizes * FADE + size;
        self.times = self.times * FADE + time;
        self.squares = self.squares * FADE + size * size;
        self.products = self.products * FADE + size * time;
    }

    /// How long a batch of `size` items will take when nothing has run for `idle_ns`; `None` before enough
    /// were measured.
    pub(super) fn predict_ns(&self, size: usize, idle_ns: u64) -> Option<u64> {
        self.predict_rounds_ns(0, size, idle_ns)
    }

    /// The same with `rounds` batches before it, of the usual size and time: where batches were small and queue up
    /// now, that is too little time, not too much. Those that are slow and fast by turns even out.
    pub(super) fn predict_rounds_ns(&self, rounds: usize, size: usize, idle_ns: u64) -> Option<u64> {
        if self.measured < MEASURED_MIN {
            return None;
        }
        let before = rounds as f64 * self.times / self.weight;
        let time = before + DEVIATIONS.mul_add(self.deviation, self.line(size as f64));
        Some((time * (-(idle_ns as f64) / HALF_LIFE_NS).exp2()) as u64)
    }

    /// Neither the fixed part nor the slope is ever below zero.
    fn line(&self, size: f64) -> f64 {
        let spread = self.weight * self.squares - self.sizes * self.sizes;
        if spread <= SPREAD_MIN * self.weight * self.squares {
            return self.times / self.weight;
        }
        let slope = (self.weight * self.products - self.sizes * self.times) / spread;
        let fixed = (self.times - slope * self.sizes) / self.weight;
        if slope < 0.0 {
            self.times / self.weight
        } else if fixed < 0.0 {
            self.products / self.squares * size
        } else {
            slope.mul_add(size, fixed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(batches: impl IntoIterator<Item = (usize, u64)>) -> Estimate {
        let mut estimate = Estimate::default();
        batches.into_iter().for_each(|(size, time_ns)| estimate.record(size, time_ns));
        estimate
    }

    #[test]
    fn nothing_is_predicted_before_ten_batches() {
        assert_eq!(after((0..9).map(|_| (1, 5))).predict_ns(1, 0), None);
        assert_eq!(after((0..10).map(|_| (1, 5))).predict_ns(1, 0), Some(5));
    }

    #[test]
    fn a_fixed_part_and_a_part_for_each_item_are_told_apart() {
        let estimate = after((0..200).map(|n| (n % 32 + 1, 5_000_000 + 500_000 * (n as u64 % 32 + 1))));
        for size in [1, 16, 32] {
            let predicted = estimate.predict_ns(size, 0).unwrap() as f64;
            let actual = (5_000_000 + 500_000 * size) as f64;
            assert!((predicted / actual - 1.0).abs() < 0.01, "{size}: {predicted} {actual}");
        }
    }

    #[test]
    fn rounds_take_the_usual_time_each_and_deviate_once() {
        let estimate = after((0..200).map(|n| (8, if n % 2 == 0 { 800 } else { 1200 })));
        let one = estimate.predict_ns(8, 0).unwrap();
        let eleven = estimate.predict_rounds_ns(10, 8, 0).unwrap();
        assert!((eleven - one).abs_diff(10_000) < 300, "{one} {eleven}");
        assert_eq!(Estimate::default().predict_rounds_ns(3, 1, 0), None);
    }

    #[test]
    fn times_that_vary_are_predicted_on_the_safe_side() {
        let estimate = after((0..200).map(|n| (8, if n % 2 == 0 { 800 } else { 1200 })));
        assert!(estimate.predict_ns(8, 0).unwrap() > 1200);
    }

    #[test]
    fn one_slow_batch_is_forgotten_when_others_follow_or_nothing_runs() {
        let slow = (32, 10_000_000_000);
        let estimate = after((0..20).map(|_| (32, 1_000_000)).chain([slow]));
        let believed = estimate.predict_ns(32, 0).unwrap();
        assert!(believed > 100_000_000);
        assert!(estimate.predict_ns(32, 20_000_000_000).unwrap() < believed / 100_000);
        let estimate = after([slow].into_iter().chain((0..300).map(|_| (32, 1_000_000))));
        assert!(estimate.predict_ns(32, 0).unwrap() < 2_000_000);
    }

    #[test]
    fn a_prediction_is_never_negative() {
        let falling = after((1..40).map(|n| (n, 1_000_000 / n as u64)));
        let steep = after((20..40).map(|n| (n, 1_000_000 * (n as u64 - 19))));
        for size in [1, 10, 100] {
            assert!(falling.predict_ns(size, 0).unwrap() > 0);
            assert!(steep.predict_ns(size, 0).unwrap() > 0);
        }
    }
}
