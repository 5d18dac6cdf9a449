//! How many further attempts all calls of a router may make together, so that retries never multiply an
//! outage: a fifth of the requests, plus a few for routers with little to do. Pure: time and counts come in.

/// Further attempts for each request. Finagle's and Envoy's figure.
const PER_REQUEST: f64 = 0.2;
/// Further attempts each second, whatever the number of requests.
const PER_SECOND: f64 = 3.0;
/// What is not used within this time is forgotten.
const WINDOW_S: f64 = 10.0;

/// The budget of one router.
#[derive(Debug)]
pub(super) struct RetryBudget {
    tokens: f64,
    /// When the tokens were last counted, and the requests there had been by then.
    at_ms: u64,
    requests: u64,
}

impl RetryBudget {
    /// A full budget: a router that has just started may retry its first calls.
    pub(super) const fn new(now_ms: u64) -> Self {
        Self { tokens: PER_SECOND * WINDOW_S, at_ms: now_ms, requests: 0 }
    }

    /// Takes one attempt, if there is one left. `requests` counts all since the start.
    pub(super) fn take(&mut self, now_ms: u64, requests: u64) -> bool {
        let passed_s = now_ms.saturating_sub(self.at_ms) as f64 / 1e3;
        let begun = requests.saturating_sub(self.requests) as f64;
        // Of a longer time only the last window counts, its requests taken as spread evenly.
        let recent = (WINDOW_S / passed_s).min(1.0);
        let earned = (PER_REQUEST * begun + PER_SECOND * passed_s) * recent;
        self.tokens = self.tokens * (1.0 - passed_s / WINDOW_S).max(0.0) + earned;
        (self.at_ms, self.requests) = (now_ms, requests);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &mut RetryBudget, now_ms: u64, requests: u64, asked: usize) -> usize {
        (0..asked).filter(|_| budget.take(now_ms, requests)).count()
    }

    #[test]
    fn a_new_router_has_ten_seconds_worth_and_no_more() {
        let mut budget = RetryBudget::new(5);
        assert_eq!(taken(&mut budget, 5, 0, 100), 30);
        assert_eq!(taken(&mut budget, 5, 0, 100), 0);
    }

    #[test]
    fn a_fifth_of_the_requests_may_be_retried() {
        let mut budget = RetryBudget::new(0);
        assert_eq!(taken(&mut budget, 0, 0, 100), 30);
        assert_eq!(taken(&mut budget, 0, 1_000, 1_000), 200);
        assert_eq!(taken(&mut budget, 0, 1_005, 1_000), 1);
    }

    #[test]
    fn three_each_second_are_always_allowed() {
        let mut budget = RetryBudget::new(0);
        taken(&mut budget, 0, 0, 100);
        assert_eq!(taken(&mut budget, 1_000, 0, 100), 3);
        assert_eq!(taken(&mut budget, 2_000, 0, 100), 3);
    }

    #[test]
    fn what_was_saved_up_is_forgotten_after_ten_seconds() {
        let mut budget = RetryBudget::new(0);
        // A million requests an hour ago allow nothing today beyond their share of the last ten seconds.
        assert_eq!(taken(&mut budget, 3_600_000, 3_600_000, 10_000), 2_030);
        assert_eq!(taken(&mut budget, 3_620_000, 3_600_000, 10_000), 30);
    }

    #[test]
    fn retries_stay_below_the_share_while_everything_fails() {
        let mut budget = RetryBudget::new(0);
        let mut retried = 0;
        for request in 1..=100_000u64 {
            retried += taken(&mut budget, request / 10, request, 2);
        }
        let allowed = 30.0 + 0.2 * 100_000.0 + 3.0 * 10.0;
        assert!(f64::from(u32::try_from(retried).unwrap()) <= allowed, "{retried} of {allowed}");
        assert!(retried >= 19_000, "{retried}");
    }

    #[test]
    fn a_clock_or_count_that_stands_still_is_harmless() {
        let mut budget = RetryBudget::new(100);
        assert!(budget.take(50, 0), "an earlier time earns nothing and takes nothing away");
        assert_eq!(taken(&mut budget, 50, 0, 100), 29);
    }
}
