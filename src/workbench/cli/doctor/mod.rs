//! `luthier doctor`.

mod engine;
mod host;
mod session;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::failure::{Failure, Outcome};
use super::{output, project::Folder};

/// Look at what this machine offers for fine-tuning, and what is missing
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  luthier doctor\n  luthier doctor --json | jq '.findings[] | select(.standing != \"good\")'"
)]
pub struct Arguments {
    #[command(flatten)]
    folder: Folder,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

/// The state of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Standing {
    Good,
    /// Works, but not as well as it could.
    Note,
    Warning,
    /// Luthier cannot work without it.
    Missing,
}

impl Standing {
    fn mark(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Note => "·",
            Self::Warning => "!",
            Self::Missing => "✗",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    subject: &'static str,
    standing: Standing,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn good(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, standing: Standing::Good, found: found.into(), remedy: None }
    }

    fn short(
        subject: &'static str,
        standing: Standing,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { subject, standing, found: found.into(), remedy: Some(remedy.into()) }
    }
}

pub fn run(arguments: &Arguments) -> Outcome {
    let folder = arguments.folder.find()?;
    let mut findings = engine::findings();
    findings.extend(host::findings(&folder));
    findings.extend(session::findings());
    let missing = findings.iter().filter(|finding| finding.standing == Standing::Missing).count();
    if arguments.json {
        output::document(&json!({ "findings": findings, "pass": missing == 0 }))?;
    } else {
        output::line(&describe(&findings))?;
    }
    match missing {
        0 => Ok(()),
        1 => Err(Failure::check("one thing is missing; its remedy is listed with it")),
        more => {
            Err(Failure::check(format!("{more} things are missing; their remedies are listed with them")))
        }
    }
}

fn describe(findings: &[Finding]) -> String {
    let mut lines = Vec::new();
    for finding in findings {
        lines.push(format!("{} {:<10} {}", finding.standing.mark(), finding.subject, finding.found));
        if let Some(remedy) = &finding.remedy {
            lines.push(format!("  {:<10} → {remedy}", ""));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_stands_on_one_line_and_its_remedy_below() {
        let findings = [
            Finding::good("memory", "16.0 GiB"),
            Finding::short("engine", Standing::Missing, "not there", "make build"),
        ];
        assert_eq!(
            describe(&findings),
            "✓ memory     16.0 GiB\n✗ engine     not there\n             → make build"
        );
    }
}
