//! Medians, percentiles and spread of what was measured. Exact: every sample is kept.

/// The value below which so many of a hundred lie, of sorted samples; 0 of none.
pub(crate) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    match sorted.len() {
        0 => 0,
        count => sorted[(count - 1) * percent / 100],
    }
}

/// A middle and how far the middle half lies around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Middle {
    pub(crate) median: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) upper_quartile: f64,
}

impl Middle {
    /// Of any samples; NaN of none.
    pub(crate) fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            median: quantile(&sorted, 0.5),
            lower_quartile: quantile(&sorted, 0.25),
            upper_quartile: quantile(&sorted, 0.75),
        }
    }
}

/// Between the two samples around it, as most statistics programs have it.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = last as f64 * share;
    let (below, part) = (at.floor(), at.fract());
    let below = below as usize;
    sorted[below] + (sorted[(below + 1).min(last)] - sorted[below]) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let samples: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&samples, 50), 100);
        assert_eq!(percentile(&samples, 99), 198);
        assert_eq!((percentile(&samples, 100), percentile(&[], 50), percentile(&[7], 99)), (200, 0, 7));
    }

    #[test]
    fn the_middle_half_lies_around_the_median() {
        let middle = Middle::of(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(middle, Middle { median: 3.0, lower_quartile: 2.0, upper_quartile: 4.0 });
        assert_eq!(Middle::of(&[1.0, 2.0]).median, 1.5);
        assert!(Middle::of(&[]).median.is_nan());
    }
}
