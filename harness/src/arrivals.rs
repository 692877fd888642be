//! Open-loop arrivals: when the schedule wanted each request to leave.
//!
//! The schedule never looks at the server. One arrival is one request (one batch), and every record in it carries
//! that intended time. A producer that cannot send in time sends late; the request keeps its intended time, so the
//! wait is in its response time, and it is counted late. Slowing the schedule down instead would hide exactly the
//! waits that a user would have seen.

use serde::{Deserialize, Serialize};

/// How arrivals are spread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Equal distances.
    Uniform,
    /// Independent of each other: exponential distances.
    Poisson,
}

/// One producer's arrivals: an endless iterator of intended times in nanoseconds.
#[derive(Clone, Debug)]
pub struct Arrivals {
    start_ns: u64,
    interval_ns: f64,
    spread: Spread,
    /// Arrivals taken. Uniform ones are computed from it: adding up three million distances drifts by microseconds.
    taken: u64,
    first_ns: f64,
    /// Nanoseconds from the start to the next arrival. A float holds whole nanoseconds exactly for 100 days.
    next_ns: f64,
    random: fastrand::Rng,
}

/// A schedule over all producers of a load.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct OpenLoop {
    /// How arrivals are spread.
    pub spread: Spread,
    /// Requests each second, over all producers.
    pub requests_per_second: f64,
    /// How many producers share them.
    pub producers: u32,
    /// When the schedule begins, on the clock the load uses.
    pub start_ns: u64,
    /// The seed of the run.
    pub seed: u64,
}

impl OpenLoop {
    /// The share of one producer. Uniform producers are staggered, so that they do not all send in one instant.
    ///
    /// # Panics
    /// When the rate is not positive or there is no such producer: validation refuses both.
    #[must_use]
    pub fn arrivals(&self, producer: u32) -> Arrivals {
        assert!(self.requests_per_second > 0.0, "{} requests/s have no arrivals", self.requests_per_second);
        assert!(producer < self.producers, "producer {producer} of {}", self.producers);
        let interval_ns = 1e9 * f64::from(self.producers) / self.requests_per_second;
        let mut random = fastrand::Rng::with_seed(self.seed ^ (u64::from(producer) << 32) ^ 0x6172_7276);
        let first_ns = match self.spread {
            Spread::Uniform => interval_ns * f64::from(producer) / f64::from(self.producers),
            Spread::Poisson => exponential(&mut random) * interval_ns,
        };
        Arrivals {
            start_ns: self.start_ns,
            interval_ns,
            spread: self.spread,
            taken: 0,
            first_ns,
            next_ns: first_ns,
            random,
        }
    }
}

impl Arrivals {
    /// When the next request should leave; asking does not move on.
    #[must_use]
    pub fn peek(&self) -> u64 {
        self.start_ns + self.next_ns as u64
    }

    /// How many arrivals were due at `now_ns` and have not been taken: the backlog of an overloaded producer
    /// (for Poisson arrivals its expectation).
    #[must_use]
    pub fn due(&self, now_ns: u64) -> u64 {
        if now_ns < self.peek() {
            return 0;
        }
        ((now_ns - self.peek()) as f64 / self.interval_ns) as u64 + 1
    }
}

impl Iterator for Arrivals {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let intended_ns = self.peek();
        self.taken += 1;
        self.next_ns = match self.spread {
            Spread::Uniform => self.first_ns + self.taken as f64 * self.interval_ns,
            Spread::Poisson => self.next_ns + exponential(&mut self.random) * self.interval_ns,
        };
        Some(intended_ns)
    }
}

/// Requests that left, and those that left later than intended.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lateness {
    /// Requests sent.
    pub sent: u64,
    /// Those sent more than [`LATE_NS`] after their intended time.
    pub late: u64,
    /// The latest of all, in nanoseconds after its intended time.
    pub latest_ns: u64,
    /// Requests that were due before the end and never left.
    pub never_sent: u64,
}

/// Within this a request left on time: a timer and a wake-up take some tens of microseconds.
pub const LATE_NS: u64 = 1_000_000;

impl Lateness {
    /// Counts one request that was to leave at `intended_ns` and left at `sent_ns`.
    pub fn count(&mut self, intended_ns: u64, sent_ns: u64) {
        let late_ns = sent_ns.saturating_sub(intended_ns);
        self.sent += 1;
        self.late += u64::from(late_ns > LATE_NS);
        self.latest_ns = self.latest_ns.max(late_ns);
    }

    /// Adds another producer's count.
    pub fn add(&mut self, other: &Lateness) {
        self.sent += other.sent;
        self.late += other.late;
        self.latest_ns = self.latest_ns.max(other.latest_ns);
        self.never_sent += other.never_sent;
    }
}

fn exponential(random: &mut fastrand::Rng) -> f64 {
    // 1 - f64() lies in (0, 1]: its logarithm is finite.
    -(1.0 - random.f64()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_loop(spread: Spread, requests_per_second: f64, seed: u64) -> OpenLoop {
        OpenLoop { spread, requests_per_second, producers: 1, start_ns: 0, seed }
    }

    #[test]
    fn uniform_producers_are_staggered_and_do_not_drift() {
        let schedule = open_loop(Spread::Uniform, 3.0, 9);
        let schedule = OpenLoop { producers: 2, start_ns: 1_000, ..schedule };
        let (mut first, mut second) = (schedule.arrivals(0), schedule.arrivals(1));
        assert_eq!(first.next(), Some(1_000));
        assert_eq!(second.next(), Some(1_000 + 333_333_333));
        assert_eq!(first.next(), Some(1_000 + 666_666_666));
        let far = first.nth(2_999_998 - 1).unwrap();
        assert_eq!(
            (far - 1_000) / 1_000,
            2_999_999 * 2_000_000 / 3,
            "a million seconds later, to the microsecond"
        );
    }

    #[test]
    fn poisson_keeps_its_rate_and_its_seed() {
        let arrivals = |seed| open_loop(Spread::Poisson, 1_000.0, seed).arrivals(0);
        let times: Vec<u64> = arrivals(4).take(100_000).collect();
        assert!(times.is_sorted());
        let rate = 100_000.0 / (times[99_999] as f64 / 1e9);
        assert!((rate - 1_000.0).abs() < 20.0, "{rate} requests/s");
        let short = times.windows(2).filter(|pair| pair[1] - pair[0] < 1_000_000).count() as f64 / 99_999.0;
        assert!(
            (short - 0.632).abs() < 0.01,
            "{short} of the distances are below the mean; 1 - 1/e expected"
        );
        assert_eq!(arrivals(4).nth(10), arrivals(4).nth(10));
        assert_ne!(arrivals(4).nth(10), arrivals(5).nth(10));
    }

    #[test]
    fn an_overloaded_schedule_is_late_not_slower() {
        let mut arrivals = open_loop(Spread::Uniform, 1_000.0, 1).arrivals(0);
        let mut lateness = Lateness::default();
        let now_ns = 100_000_000;
        assert_eq!(arrivals.due(now_ns), 101);
        let mut taken = 0;
        while arrivals.peek() <= now_ns {
            lateness.count(arrivals.next().unwrap(), now_ns);
            taken += 1;
        }
        assert_eq!(taken, 101);
        assert_eq!(arrivals.due(now_ns), 0);
        assert_eq!(lateness, Lateness { sent: 101, late: 99, latest_ns: 100_000_000, never_sent: 0 });
    }
}
