//! Medians and their confidence intervals, without an assumption on how the values are spread.

/// A median and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Median {
    pub(super) value: f64,
    /// The 95 % confidence interval; `None` if there are too few values for one (fewer than six).
    pub(super) interval: Option<[f64; 2]>,
}

impl Median {
    /// Returns the median of some values; if there are none, it is not a number.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let value = match n {
            0 => f64::NAN,
            _ if n % 2 == 1 => sorted[n / 2],
            _ => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        };
        let interval = rank(n).map(|k| [sorted[k], sorted[n - 1 - k]]);
        Median { value, interval }
    }

    /// The width of the interval as a share of the median; infinite if there is none.
    pub(super) fn width(&self) -> f64 {
        self.interval.map_or(f64::INFINITY, |[low, high]| (high - low) / self.value)
    }
}

/// Returns which of `n` sorted values (and, from the other end, which other one) bounds the
/// interval: the largest `k` for which the median lies outside with a probability of at most 5 %.
/// The number of values below the median is binomial with p = ½.
fn rank(n: usize) -> Option<usize> {
    #[expect(clippy::cast_precision_loss, reason = "rounds")]
    let many = n as f64;
    if n > 200 {
        // The normal distribution is as good here, and (1/2)^n soon is 0.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive")]
        return Some(((many - 1.96 * many.sqrt()) / 2.0) as usize - 1);
    }
    // P(exactly i of n) from P(exactly i - 1 of n).
    let mut exactly = 0.5_f64.powf(many);
    let (mut below, mut found) = (exactly, None);
    for k in 0..n / 2 {
        if 2.0 * below > 0.05 {
            break;
        }
        found = Some(k);
        #[expect(clippy::cast_precision_loss, reason = "few values")]
        let step = (n - k) as f64 / (k + 1) as f64;
        exactly *= step;
        below += exactly;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Median::of([3.0, 1.0, 2.0]).value, 2.0);
        assert_eq!(Median::of([4.0, 1.0, 2.0, 3.0]).value, 2.5);
        assert!(Median::of([]).value.is_nan());
    }

    #[test]
    fn the_interval_is_that_of_the_tables() {
        // Order statistics (counted from one) of the 95 % interval of a median, as printed in
        // statistical tables.
        for (n, k) in
            [(6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (25, 8), (50, 18), (100, 40)]
        {
            assert_eq!(rank(n), Some(k - 1), "{n} values");
        }
        for n in 0..6 {
            assert_eq!(rank(n), None, "{n} values");
        }
        // Where the normal distribution takes over, nothing jumps.
        let [before, after] = [200, 202].map(|n| rank(n).expect("enough"));
        assert!((before..=before + 2).contains(&after), "{before} {after}");
    }

    #[test]
    fn the_interval_covers_the_median_as_often_as_it_says() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut covered = 0;
        for _ in 0..2000 {
            // The median of what is drawn from is 0.25.
            let median = Median::of((0..12).map(|_| random.f64().powi(2)));
            let [low, high] = median.interval.expect("twelve are enough");
            assert!(low <= median.value && median.value <= high);
            covered += i32::from((low..=high).contains(&0.25));
        }
        assert!(covered > 1900, "{covered} of 2000");
    }

    #[test]
    fn the_width_is_relative() {
        let median = Median::of((1..=6).map(f64::from));
        assert_eq!(median.interval, Some([1.0, 6.0]));
        assert!((median.width() - 5.0 / 3.5).abs() < 1e-9);
        assert!(Median::of([1.0]).width().is_infinite());
    }
}
