//! The report for programs. Times are nanoseconds, memory is bytes.

use serde_json::{Value, json};

use super::row::{Bound, Compared, Pooled, Row, Unit, Verdict};
use crate::stats::Middle;

/// The whole document: where it was measured, how, and every line.
pub(crate) fn document(setting: &Value, rows: &[Row]) -> Value {
    json!({ "setting": setting, "results": rows.iter().map(row).collect::<Vec<_>>() })
}

fn row(row: &Row) -> Value {
    let (bound, sense) = match row.bound {
        Bound::AtMost(most) => (json!(most), json!("at_most")),
        Bound::AtLeast(least) => (json!(least), json!("at_least")),
        Bound::None => (Value::Null, Value::Null),
    };
    let (verdict, reason) = match &row.verdict {
        Verdict::Met => ("met", None),
        Verdict::NotMet => ("not_met", None),
        Verdict::Shown => ("shown", None),
        Verdict::Skipped(reason) => ("skipped", Some(reason)),
        Verdict::Failed(reason) => ("failed", Some(reason)),
    };
    let unit = match row.unit {
        Unit::Time => "ns",
        Unit::PerSecond => "per_second",
        Unit::Bytes => "bytes",
        Unit::Count => "count",
        Unit::Percent => "percent",
    };
    let compared = match row.compared {
        Compared::Ratio => "ratio",
        Compared::Difference => "difference",
        Compared::Itself => "itself",
    };
    let latencies: serde_json::Map<String, Value> =
        row.pooled.iter().map(|(who, all)| ((*who).to_owned(), pooled(all))).collect();
    json!({
        "goal": row.goal, "what": row.what, "unit": unit, "rounds": row.rounds,
        "baseline": row.baseline.map(middle), "ours": middle(row.ours),
        "compared": compared, "result": middle(row.result),
        "bound": bound, "bound_is": sense, "verdict": verdict, "reason": reason,
        "notes": row.notes, "latencies": latencies,
    })
}

fn middle(middle: Middle) -> Value {
    json!({
        "median": middle.median, "lower_quartile": middle.lower_quartile, "upper_quartile": middle.upper_quartile,
    })
}

fn pooled(pooled: &Pooled) -> Value {
    json!({
        "count": pooled.count, "least": pooled.least, "p50": pooled.p50, "p99": pooled.p99, "most": pooled.most,
    })
}
