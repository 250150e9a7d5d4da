//! Stored outputs of another implementation: a batch with its outputs, and greedy continuations.

use std::collections::BTreeMap;
use std::path::Path;

use luthier_core::model::Architecture;
use tch::{Device, Kind, Tensor};

use super::{file, wanted};
use crate::error::{EngineError, Result};
use crate::ops;
use crate::weights::safetensors;

/// A batch of B rows of T columns, padded on the right, on the computing device.
#[derive(Debug)]
pub(super) struct Reference {
    /// `[B, T]` int64
    pub ids: Tensor,
    /// `[B, T]` int64: 0 for padding, otherwise 1.
    pub mask: Tensor,
    /// Tokens of each row without padding.
    pub lengths: Vec<i64>,
    /// For each token that is not padding, its target, or the label of untrained tokens.
    pub wanted: Vec<i64>,
    /// `[B, T, V]`
    pub logits: Tensor,
    /// `[B, T, H]`: after the final norm.
    pub hidden: Tensor,
    /// Mean over the trained tokens of the batch.
    pub loss: f64,
    pub continuations: Vec<Continuation>,
    /// For each token that is not padding, its index in `[B × T]`.
    places: Tensor,
}

/// A prompt and the most likely tokens after it.
#[derive(Debug)]
pub(super) struct Continuation {
    pub prompt: Vec<u32>,
    pub tokens: Vec<u32>,
}

impl Reference {
    /// Reads `ref.safetensors`: `input_ids`, `attention_mask`, `labels` (int64), `logits`,
    /// `last_hidden_state`, `loss`, and any number of pairs `genN.prompt`, `genN.tokens`. All problems are
    /// reported at once.
    pub fn read(folder: &Path, architecture: &Architecture, device: Device) -> Result<Self> {
        let path = file(folder);
        let mut tensors = safetensors::read(&path)?;
        let mut problems = Vec::new();
        let continuations = continuations(&mut tensors, architecture, &mut problems)?;
        let rows = tensors.get("input_ids").map(Tensor::size).unwrap_or_default();
        let (vocabulary, hidden) = (architecture.vocabulary as i64, architecture.hidden as i64);
        let batch = match rows[..] {
            [rows, columns] if rows > 0 && columns > 0 => [rows, columns],
            _ => {
                let problem = "input_ids is not a batch of shape [rows, columns]";
                return Err(unfit(&path, &[problem.to_owned()]));
            }
        };
        let [rows, columns] = batch;
        let mut take = |name: &str, shape: &[i64], integers: bool| match tensors.remove(name) {
            None => {
                problems.push(format!("{name} is missing"));
                None
            }
            Some(found) if found.size() != shape => {
                problems.push(format!("{name} is {:?}, but this model needs {shape:?}", found.size()));
                None
            }
            Some(found) if integers != (found.kind() == Kind::Int64) => {
                problems.push(format!("{name} has elements of type {:?}", found.kind()));
                None
            }
            Some(found) => Some(found),
        };
        let ids = take("input_ids", &batch, true);
        let mask = take("attention_mask", &batch, true);
        let labels = take("labels", &batch, true);
        let logits = take("logits", &[rows, columns, vocabulary], false);
        let states = take("last_hidden_state", &[rows, columns, hidden], false);
        let loss = tensors.remove("loss").filter(|loss| loss.numel() == 1);
        if loss.is_none() {
            problems.push("loss is missing or not a single number".to_owned());
        }
        let (Some(ids), Some(mask), Some(labels), Some(logits), Some(states), Some(loss)) =
            (ids, mask, labels, logits, states, loss)
        else {
            return Err(unfit(&path, &problems));
        };
        let known = |ids: &[i64]| ids.iter().all(|id| (0..vocabulary).contains(id));
        if !known(&ops::to_integers(&ids)?) {
            problems.push("input_ids has tokens beyond the model's vocabulary".to_owned());
        }
        let all_labels = ops::to_integers(&labels)?;
        if !all_labels.iter().all(|&label| label < vocabulary) {
            problems.push("labels has tokens beyond the model's vocabulary".to_owned());
        }
        let lengths = lengths(&ops::to_integers(&mask)?, columns as usize);
        let Some(lengths) = lengths.filter(|_| problems.is_empty()) else {
            if problems.is_empty() {
                problems.push("attention_mask must be 1 from each row's start, then 0".to_owned());
            }
            return Err(unfit(&path, &problems));
        };
        let places: Vec<i64> = lengths
            .iter()
            .enumerate()
            .flat_map(|(row, length)| (0..*length).map(move |place| row as i64 * columns + place))
            .collect();
        let on_device = |x: &Tensor| ops::to_device(x, device);
        Ok(Self {
            ids: on_device(&ids)?,
            mask: on_device(&mask)?,
            wanted: wanted(&all_labels, &lengths, columns as usize),
            lengths,
            logits: on_device(&logits)?,
            hidden: on_device(&states)?,
            loss: ops::value(&ops::reshape(&loss, &[])?)?,
            continuations,
            places: ops::integers(&places, device)?,
        })
    }

    /// `[B, T]`: the column of each token.
    pub fn columns(&self, device: Device) -> Result<Tensor> {
        let size = self.ids.size();
        let places: Vec<i64> = (0..size[0]).flat_map(|_| 0..size[1]).collect();
        ops::reshape(&ops::integers(&places, device)?, &size)
    }

    /// `[B, T, …]` → `[N, …]`: the tokens that are not padding, row after row.
    pub fn counted(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.size();
        let shape: Vec<i64> = std::iter::once(-1).chain(size.into_iter().skip(2)).collect();
        ops::select_rows(&ops::reshape(x, &shape)?, 0, &self.places)
    }
}

fn unfit(path: &Path, problems: &[String]) -> EngineError {
    let message = format!("is not a reference for this model: {}", problems.join("; "));
    EngineError::Data(format!("{} {message}", luthier_core::text::clean_line(&path.display().to_string())))
}

/// `genN.prompt` and `genN.tokens`, from N = 0.
fn continuations(
    tensors: &mut BTreeMap<String, Tensor>,
    architecture: &Architecture,
    problems: &mut Vec<String>,
) -> Result<Vec<Continuation>> {
    let mut found = Vec::new();
    loop {
        let names = ["prompt", "tokens"].map(|part| format!("gen{}.{part}", found.len()));
        let [Some(prompt), Some(tokens)] = names.each_ref().map(|name| tensors.remove(name)) else {
            return Ok(found);
        };
        let mut read = |name: &str, tensor: &Tensor| -> Result<Vec<u32>> {
            if tensor.kind() != Kind::Int64 || tensor.numel() == 0 {
                problems.push(format!("{name} is not a list of tokens"));
                return Ok(Vec::new());
            }
            let ids = ops::to_integers(tensor)?;
            let known = ids.iter().filter_map(|&id| u32::try_from(id).ok());
            let known: Vec<u32> = known.filter(|&id| (id as usize) < architecture.vocabulary).collect();
            if known.len() != ids.len() {
                problems.push(format!("{name} has tokens beyond the model's vocabulary"));
            }
            Ok(known)
        };
        let [prompt, tokens] = [(&names[0], prompt), (&names[1], tokens)].map(|(name, x)| read(name, &x));
        found.push(Continuation { prompt: prompt?, tokens: tokens? });
    }
}

/// Tokens of each row without padding. `None` if padding is not on the right, or a row has no tokens.
fn lengths(mask: &[i64], width: usize) -> Option<Vec<i64>> {
    mask.chunks(width)
        .map(|row| {
            let length = row.iter().take_while(|&&counts| counts == 1).count();
            let padded = row.iter().skip(length).all(|&counts| counts == 0);
            (length > 0 && padded).then_some(length as i64)
        })
        .collect()
}
