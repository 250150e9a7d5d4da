//! Rows of token ids.

use serde_json::Value;

use super::{Reader, parsed};
use crate::data::{Example, Extras};

impl Reader {
    pub(super) fn tokens(&mut self) -> Result<(Example, Extras), String> {
        let ids = self.needed("input_ids")?;
        let mut input_ids: Vec<u32> = integers(&ids, "input_ids")?
            .into_iter()
            .map(|id| {
                u32::try_from(id).map_err(|_| format!("\"input_ids\" contains {id}, which is not a token id"))
            })
            .collect::<Result<_, _>>()?;
        let mut labels = match self.take("labels") {
            Some(labels) => integers(&labels, "labels")?,
            None => input_ids.iter().map(|&id| i64::from(id)).collect(),
        };
        if labels.len() != input_ids.len() {
            return Err(format!("{} input_ids, but {} labels", input_ids.len(), labels.len()));
        }
        if let Some(mask) = self.take("attention_mask") {
            let mask = integers(&mask, "attention_mask")?;
            let used = mask.iter().take_while(|&&attended| attended == 1).count();
            if mask.len() != input_ids.len() || mask[used..].iter().any(|&attended| attended != 0) {
                return Err(
                    "\"attention_mask\" must be 1 for each id, then 0 for padding at the end".to_owned()
                );
            }
            input_ids.truncate(used);
            labels.truncate(used);
        }
        for (position, (&id, &label)) in input_ids.iter().zip(&labels).enumerate() {
            if label != -100 && label != i64::from(id) {
                return Err(format!(
                    "label {label} at position {position} is neither -100 nor the id {id} at the same place (labels \
                     are shifted inside the loss)"
                ));
            }
        }
        Ok((Example::Tokens { input_ids, labels }, Extras::default()))
    }
}

fn integers(value: &Value, name: &str) -> Result<Vec<i64>, String> {
    let list = parsed(value);
    let numbers: Option<Vec<i64>> =
        list.as_array().and_then(|list| list.iter().map(Value::as_i64).collect::<Option<Vec<_>>>());
    numbers.ok_or_else(|| format!("{name:?} is not a list of whole numbers"))
}
