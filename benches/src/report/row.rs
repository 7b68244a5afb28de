//! One line of the report: what something costs, beside what it must cost at least.

use crate::stats::{Middle, percentile};

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds.
    Time,
    PerSecond,
    Bytes,
    Count,
    /// Of a hundred.
    Percent,
}

/// What is asked of the comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Shown for whoever wants to know.
    None,
}

/// How ours is held against the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    Ratio,
    Difference,
    /// There is no baseline: the bound is on the figure itself.
    Itself,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Met,
    NotMet,
    /// There is no bound.
    Shown,
    /// It cannot be measured here.
    Skipped(String),
    /// The measurement found its own result to be wrong.
    Failed(String),
}

/// All samples of a latency, of every round.
#[derive(Debug, Clone)]
pub(crate) struct Pooled {
    pub(crate) count: usize,
    pub(crate) least: u64,
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) most: u64,
}

impl Pooled {
    fn of(sorted: &[u64]) -> Self {
        let at = |percent| percentile(sorted, percent);
        Self { count: sorted.len(), least: at(0), p50: at(50), p99: at(99), most: at(100) }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) goal: u8,
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) baseline: Option<Middle>,
    pub(crate) ours: Middle,
    pub(crate) compared: Compared,
    /// The ratio or difference of each round, and how the rounds spread.
    pub(crate) result: Middle,
    pub(crate) bound: Bound,
    pub(crate) verdict: Verdict,
    /// How many rounds.
    pub(crate) rounds: usize,
    pub(crate) notes: Vec<String>,
    pub(crate) pooled: Vec<(&'static str, Pooled)>,
}

impl Row {
    /// Ours over the baseline, round by round.
    pub(crate) fn ratio(goal: u8, what: impl Into<String>, unit: Unit, baseline: &[f64], ours: &[f64]) -> Self {
        Self::pairs(goal, what.into(), unit, Compared::Ratio, (baseline, ours), |baseline, ours| ours / baseline)
    }

    /// Ours less the baseline, round by round.
    pub(crate) fn difference(goal: u8, what: impl Into<String>, unit: Unit, baseline: &[f64], ours: &[f64]) -> Self {
        Self::pairs(goal, what.into(), unit, Compared::Difference, (baseline, ours), |baseline, ours| ours - baseline)
    }

    fn pairs(
        goal: u8,
        what: String,
        unit: Unit,
        compared: Compared,
        (baseline, ours): (&[f64], &[f64]),
        compare: impl Fn(f64, f64) -> f64,
    ) -> Self {
        assert_eq!(baseline.len(), ours.len(), "both took part in every round");
        let results: Vec<f64> = baseline.iter().zip(ours).map(|(&baseline, &ours)| compare(baseline, ours)).collect();
        let mut row = Self::itself(goal, what, unit, ours);
        (row.baseline, row.compared, row.result) = (Some(Middle::of(baseline)), compared, Middle::of(&results));
        row
    }

    /// A figure that nothing is held against.
    pub(crate) fn itself(goal: u8, what: impl Into<String>, unit: Unit, samples: &[f64]) -> Self {
        Self {
            goal,
            what: what.into(),
            unit,
            baseline: None,
            ours: Middle::of(samples),
            compared: Compared::Itself,
            result: Middle::of(samples),
            bound: Bound::None,
            verdict: Verdict::Shown,
            rounds: samples.len(),
            notes: Vec::new(),
            pooled: Vec::new(),
        }
    }

    pub(crate) fn skipped(goal: u8, what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped(reason.into()), ..Self::itself(goal, what, Unit::Count, &[]) }
    }

    pub(crate) fn failed(goal: u8, what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failed(reason.into()), ..Self::itself(goal, what, Unit::Count, &[]) }
    }

    pub(crate) fn bound(mut self, bound: Bound) -> Self {
        self.bound = bound;
        let met = match bound {
            Bound::AtMost(most) => self.result.median <= most,
            Bound::AtLeast(least) => self.result.median >= least,
            Bound::None => {
                self.verdict = Verdict::Shown;
                return self;
            }
        };
        self.verdict = if met { Verdict::Met } else { Verdict::NotMet };
        self
    }

    /// Not met, whatever the figures are.
    pub(crate) fn unless(mut self, fault: Option<String>) -> Self {
        if let Some(fault) = fault {
            self.verdict = Verdict::Failed(fault);
        }
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// All latencies behind the row, sorted.
    pub(crate) fn latencies(mut self, who: &'static str, sorted: &[u64]) -> Self {
        self.pooled.push((who, Pooled::of(sorted)));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_one_by_one() {
        // One round met a busy machine, and both with it.
        let row = Row::ratio(1, "x", Unit::Time, &[10.0, 100.0, 10.0], &[12.0, 120.0, 12.0]);
        assert_eq!(row.result.median, 1.2);
        assert_eq!(row.clone().bound(Bound::AtMost(1.25)).verdict, Verdict::Met);
        assert_eq!(row.clone().bound(Bound::AtLeast(1.25)).verdict, Verdict::NotMet);
        let fault = Some("no".to_owned());
        assert_eq!(row.bound(Bound::AtMost(2.0)).unless(fault).verdict, Verdict::Failed("no".to_owned()));
    }

    #[test]
    fn what_was_not_measured_meets_nothing() {
        assert_eq!(Row::itself(1, "x", Unit::Count, &[]).bound(Bound::AtMost(1.0)).verdict, Verdict::NotMet);
    }
}
