//! What the findings say about each row.

use luthier_core::data::{Report, Severity};

/// What the findings say about a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    pub worst: Option<Severity>,
    /// How many kinds of problems it has.
    pub findings: usize,
}

/// What the findings of `report` say about each of `rows` rows.
pub fn facts(report: &Report, rows: usize) -> Vec<Facts> {
    let mut facts = vec![Facts::default(); rows];
    let worse = |left: Option<Severity>, right| Some(left.map_or(right, |left| left.min(right)));
    for of in &report.rows_of {
        // Which rows beyond those with a message are the worse ones is not known.
        let severities = report.problems.iter().filter(|problem| problem.kind == of.kind);
        let mildest = severities.map(|problem| problem.severity).max().unwrap_or(Severity::Note);
        for row in &of.rows {
            if let Some(facts) = facts.get_mut(*row) {
                facts.findings += 1;
                facts.worst = worse(facts.worst, mildest);
            }
        }
    }
    for problem in &report.problems {
        if let Some(facts) = problem.row.and_then(|row| facts.get_mut(row)) {
            facts.worst = worse(facts.worst, problem.severity);
        }
    }
    facts
}
