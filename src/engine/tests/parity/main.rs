//! Compares the engine with transformers, PEFT and TRL for every folder of `tests/references`: stored logits,
//! hidden states, losses, gradients, continuations and training steps. Also tests the engine's own
//! invariants.

#[cfg(test)]
mod adapters;
#[cfg(test)]
mod beginnings;
#[cfg(test)]
mod generation;
#[cfg(test)]
mod gguf;
#[cfg(test)]
mod labels;
#[cfg(test)]
mod layouts;
#[cfg(test)]
mod methods;
#[cfg(test)]
mod models;
#[cfg(test)]
mod preferences;
#[cfg(test)]
mod quantised;
#[cfg(test)]
mod references;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod runs;
#[cfg(test)]
mod sample_model;
#[cfg(test)]
mod seam;
#[cfg(test)]
mod steps;
#[cfg(test)]
mod support;
#[cfg(test)]
mod working;
