//! Ways to split the rows into those that are trained on and those that are held out.

use std::path::Path;

use luthier_core::config::{Config, EvalSource, write_key};
use luthier_core::data::{BY_PROMPT, BY_ROW, Rows, SplitSizes, split_sizes};

use super::Refusal;

/// Shares of the rows that are offered.
const SHARES: [f64; 4] = [0.02, 0.05, 0.1, 0.2];

/// A way to split the rows, and what it leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitChoice {
    /// `data.eval`, as `luthier.toml` has it.
    eval: String,
    /// `data.group_by`.
    group_by: String,
    /// The way in words.
    pub title: String,
    pub sizes: SplitSizes,
    /// What rows that belong together have in common: `prompt`, or a column.
    pub together: String,
    /// Whether it is what the settings say.
    pub is_current: bool,
}

/// The ways to split these rows, the present one among them. `quarantined` rows take part, as they do when the rows are
/// read.
pub fn split_choices(config: &Config, rows: &Rows, quarantined: &Rows) -> Vec<SplitChoice> {
    let data = &config.data;
    // Without a column of its own, rows are kept together by their prompts.
    let together = if data.group_by == BY_ROW { BY_PROMPT } else { &data.group_by };
    let choice = |title: String, eval: String, group_by: &str, sizes, is_current| SplitChoice {
        eval,
        group_by: group_by.to_owned(),
        title,
        sizes,
        together: together.to_owned(),
        is_current,
    };
    let EvalSource::Fraction(current) = data.eval else {
        // To hold out rows of the training files instead is to give up files that somebody chose.
        let eval = config.get_text("data.eval").unwrap_or_default();
        let title = format!("the files of data.eval: {eval}");
        return vec![choice(title, eval, &data.group_by, SplitSizes::of(rows), true)];
    };
    let mut shares = SHARES.to_vec();
    if current > 0.0 && !SHARES.contains(&current) {
        shares.push(current);
    }
    shares.sort_by(f64::total_cmp);
    let mut choices = Vec::new();
    for share in shares {
        for group_by in [together, BY_ROW] {
            let by_row = group_by == BY_ROW;
            let percent = (share * 1e6).round() / 1e4;
            let title =
                if by_row { format!("{percent} % row by row") } else { format!("{percent} % by {group_by}") };
            let sizes = split_sizes(rows, quarantined, config, share, by_row);
            let is_current = current.to_bits() == share.to_bits() && (data.group_by == BY_ROW) == by_row;
            choices.push(choice(title, share.to_string(), group_by, sizes, is_current));
        }
    }
    let nothing = split_sizes(rows, quarantined, config, 0.0, true);
    let title = "nothing held out".to_owned();
    choices.push(choice(title, "0".to_owned(), &data.group_by, nothing, current <= 0.0));
    choices
}

/// Writes a choice into `luthier.toml`.
pub fn set_split(folder: &Path, choice: &SplitChoice) -> Result<(), Refusal> {
    let file = folder.join("luthier.toml");
    // A text in JSON is one in TOML.
    let group_by = serde_json::Value::from(choice.group_by.as_str()).to_string();
    write_key(&file, "data.group_by", &group_by)?;
    Ok(write_key(&file, "data.eval", &choice.eval)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use luthier_core::data::read_dataset;
    use pretty_assertions::assert_eq;

    use super::*;
    use crate::project::Project;

    #[test]
    fn a_split_by_rows_shares_prompts_and_one_by_prompts_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let row = |number: usize| {
            serde_json::json!({"prompt": format!("p{}", number % 20), "completion": number.to_string()})
                .to_string()
        };
        let rows: Vec<String> = (0..100).map(row).collect();
        fs::write(folder.path().join("a.jsonl"), rows.join("\n")).unwrap();
        let settings = "[model]\npath = \"m\"\n[data]\ntrain = \"a.jsonl\"\neval = 0.1 # a tenth\n";
        fs::write(folder.path().join("luthier.toml"), settings).unwrap();
        let project = || Project::open(folder.path(), &[]).unwrap();
        let choices = |project: &Project| {
            let dataset = read_dataset(&project.config, folder.path()).unwrap();
            (split_choices(&project.config, &dataset.rows, &dataset.quarantined), dataset)
        };
        let (offered, dataset) = choices(&project());
        let of = |offered: &[SplitChoice], title: &str| {
            offered
                .iter()
                .find(|choice| choice.title == title)
                .unwrap_or_else(|| panic!("{offered:#?}"))
                .clone()
        };
        let now = of(&offered, "10 % by prompt");
        assert_eq!((now.is_current, now.sizes.held_out, now.sizes.shared), (true, 10, 0));
        assert_eq!(now.sizes, SplitSizes::of(&dataset.rows));
        let by_row = of(&offered, "20 % row by row");
        assert!(by_row.sizes.held_out == 20 && by_row.sizes.shared > 10, "{by_row:?}");
        assert_eq!(offered.iter().filter(|choice| choice.is_current).count(), 1);
        set_split(folder.path(), &by_row).unwrap();
        let (offered, dataset) = choices(&project());
        assert_eq!(SplitSizes::of(&dataset.rows), by_row.sizes);
        assert!(of(&offered, "20 % row by row").is_current);
    }
}
