//! What a handful of paired blocks can say: a ratio, its interval, and whether that is a difference.
//!
//! Each block gives one pair, measured close together in time; what counts is the ratio within the pair, so drift of the
//! machine falls out. The interval is exact for any symmetric spread of the log ratios: by Hartigan's typical values
//! ("Using subsample values as typical values", 1969) the means of all subsets of n values, sorted, cut the line into
//! 2^n pieces that hold the true centre equally often. It is the sign-flip permutation test turned inside out, with
//! nothing assumed of the distribution. Above [`EXACT_BLOCKS_MAX`] pairs, where there are too many subsets, Student's t.

/// Confidence of every interval here.
pub const CONFIDENCE: f64 = 0.95;
/// Fewer pairs than this cannot give an interval of that confidence: 2 of 2^n subsets are the least that can be left out.
pub const PAIRS_MIN: usize = 6;
/// Up to here all subsets are looked at.
pub const EXACT_BLOCKS_MAX: usize = 16;
/// An interval wider than this to either side says nothing of differences one would care about.
pub const WIDTH_MAX: f64 = 0.10;

/// A ratio of two measurements, from pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The geometric mean of the pairs' ratios: 1.1 is a tenth more.
    pub ratio: f64,
    /// The interval that holds the true one with [`CONFIDENCE`]; `None` with too few pairs.
    pub interval: Option<(f64, f64)>,
    /// Pairs it comes from.
    pub pairs: usize,
}

/// What a ratio says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More, and by more than the noise.
    More,
    /// Less, and by more than the noise.
    Less,
    /// The interval holds 1 and is narrow.
    NoDifferenceShown,
    /// The interval is too wide to say either, there are too few pairs, or the difference is no larger than the one that
    /// the same thing measured twice showed.
    Inconclusive,
}

impl Ratio {
    /// Of pairs (a, b): how much b is of a. Pairs with a zero are left out: they were not measured.
    #[must_use]
    pub fn of(pairs: &[(f64, f64)]) -> Option<Ratio> {
        let measured = pairs.iter().filter(|(a, b)| *a > 0.0 && *b > 0.0);
        let logs: Vec<f64> = measured.map(|(a, b)| (b / a).ln()).collect();
        if logs.is_empty() {
            return None;
        }
        let mean = mean(&logs);
        let interval = match logs.len() {
            n if n < PAIRS_MIN => None,
            n if n <= EXACT_BLOCKS_MAX => Some(exact_interval(&logs)),
            _ => Some(t_interval(&logs)),
        };
        let interval = interval.map(|(low, high)| (low.exp(), high.exp()));
        Some(Ratio { ratio: mean.exp(), interval, pairs: logs.len() })
    }

    /// What it says, given the ratio that the same thing measured twice showed.
    #[must_use]
    pub fn verdict(&self, noise: Option<&Ratio>) -> Verdict {
        let Some((low, high)) = self.interval else { return Verdict::Inconclusive };
        let noise = noise.map_or(0.0, |noise| noise.ratio.ln().abs());
        let beyond_noise = self.ratio.ln().abs() > noise;
        match (low > 1.0, high < 1.0) {
            (true, _) if beyond_noise => Verdict::More,
            (_, true) if beyond_noise => Verdict::Less,
            (true, _) | (_, true) => Verdict::Inconclusive,
            _ if high <= 1.0 + WIDTH_MAX && low >= 1.0 - WIDTH_MAX => Verdict::NoDifferenceShown,
            _ => Verdict::Inconclusive,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The subset means that leave out as many on either side as the confidence allows.
fn exact_interval(values: &[f64]) -> (f64, f64) {
    let subsets = 1usize << values.len();
    let mut means = Vec::with_capacity(subsets - 1);
    for subset in 1..subsets {
        let chosen = values.iter().enumerate().filter(|(at, _)| subset >> at & 1 == 1);
        let (sum, count) = chosen.fold((0.0, 0u32), |(sum, count), (_, value)| (sum + value, count + 1));
        means.push(sum / f64::from(count));
    }
    means.sort_by(f64::total_cmp);
    let left_out = ((1.0 - CONFIDENCE) / 2.0 * subsets as f64).floor() as usize;
    let left_out = left_out.max(1);
    (means[left_out - 1], means[means.len() - left_out])
}

fn t_interval(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let centre = mean(values);
    let variance = values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / (n - 1.0);
    let half = t_quantile(n - 1.0) * (variance / n).sqrt();
    (centre - half, centre + half)
}

/// The 97.5 % point of Student's t: Cornish and Fisher's expansion, right to three digits from 16 degrees of freedom on.
fn t_quantile(degrees: f64) -> f64 {
    let z: f64 = 1.959_963_985;
    let terms = [
        z,
        (z.powi(3) + z) / (4.0 * degrees),
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * degrees.powi(2)),
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * degrees.powi(3)),
    ];
    terms.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(random: &mut fastrand::Rng) -> f64 {
        (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
    }

    /// How many of `worlds` intervals hold the true ratio, with so many pairs.
    fn covered(pairs: usize, worlds: usize, seed: u64) -> f64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let truth: f64 = 1.07;
        let hits = (0..worlds).filter(|_| {
            // Machines drift from block to block: both sides of a pair alike.
            let pairs: Vec<(f64, f64)> = (0..pairs)
                .map(|_| {
                    let drift = (0.5 * normal(&mut random)).exp();
                    let (a, b) = ((0.03 * normal(&mut random)).exp(), (0.03 * normal(&mut random)).exp());
                    (100.0 * drift * a, 100.0 * drift * b * truth)
                })
                .collect();
            let (low, high) = Ratio::of(&pairs).unwrap().interval.unwrap();
            low <= truth && truth <= high
        });
        hits.count() as f64 / worlds as f64
    }

    #[test]
    fn an_interval_holds_the_truth_as_often_as_it_says() {
        let seed = fastrand::u64(..);
        for (pairs, worlds) in [(6, 4000), (8, 2000), (10, 600), (20, 2000)] {
            let share = covered(pairs, worlds, seed);
            assert!((0.93..0.985).contains(&share), "seed {seed}: {pairs} pairs cover {share}");
        }
    }

    #[test]
    fn two_of_the_same_are_seldom_called_different() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let called = (0..2000).filter(|_| {
            let pairs: Vec<(f64, f64)> = (0..8)
                .map(|_| (100.0 + 5.0 * normal(&mut random), 100.0 + 5.0 * normal(&mut random)))
                .collect();
            matches!(Ratio::of(&pairs).unwrap().verdict(None), Verdict::More | Verdict::Less)
        });
        let called = called.count();
        assert!(called <= 140, "seed {seed}: {called} of 2000");
    }

    #[test]
    fn what_is_known_is_said_and_what_is_not_is_not() {
        let pairs = |ratios: &[f64]| ratios.iter().map(|r| (10.0, 10.0 * r)).collect::<Vec<_>>();
        let more = Ratio::of(&pairs(&[1.2, 1.25, 1.22, 1.19, 1.24, 1.21, 1.2, 1.23])).unwrap();
        assert!((more.ratio - 1.217).abs() < 0.01 && more.pairs == 8);
        assert_eq!(more.verdict(None), Verdict::More);
        let noise = Ratio::of(&pairs(&[1.3; 8])).unwrap();
        assert_eq!(more.verdict(Some(&noise)), Verdict::Inconclusive, "below the noise nothing is ranked");
        let less = Ratio::of(&pairs(&[0.8, 0.82, 0.79, 0.81, 0.8, 0.8])).unwrap();
        assert_eq!(less.verdict(None), Verdict::Less);
        let same = Ratio::of(&pairs(&[1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99])).unwrap();
        assert_eq!(same.verdict(None), Verdict::NoDifferenceShown);
        let wild = Ratio::of(&pairs(&[0.5, 2.0, 0.7, 1.6, 0.6, 1.9, 1.0, 1.1])).unwrap();
        assert_eq!(wild.verdict(None), Verdict::Inconclusive);
        let few = Ratio::of(&pairs(&[1.5, 1.5, 1.5])).unwrap();
        assert_eq!((few.interval, few.verdict(None)), (None, Verdict::Inconclusive));
        assert_eq!(Ratio::of(&[(0.0, 1.0)]), None);
    }

    #[test]
    fn students_t_is_students() {
        for (degrees, known) in [(16.0, 2.120), (20.0, 2.086), (39.0, 2.023), (100.0, 1.984)] {
            assert!((t_quantile(degrees) - known).abs() < 0.001, "{degrees}: {}", t_quantile(degrees));
        }
    }
}
