//! The engine against what transformers and PEFT compute: stored logits, hidden states, losses, generations and
//! training steps of a tiny random model and of the sample model; and what it refuses to read.

#[cfg(test)]
mod adapters;
#[cfg(test)]
mod beginnings;
#[cfg(test)]
mod families;
#[cfg(test)]
mod generation;
#[cfg(test)]
mod gguf;
#[cfg(test)]
mod methods;
#[cfg(test)]
mod quantised;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod sample_model;
#[cfg(test)]
mod seam;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tiny;
