//! DoRA (arXiv 2402.09353): the rows of `W + scale · B · A` keep only their direction and get trained
//! lengths.

use tch::{Kind, Tensor};

use super::super::trained;
use crate::error::Result;
use crate::layers::Linear;
use crate::models::Model;
use crate::ops;

#[derive(Debug)]
pub(super) struct Magnitude {
    /// The trained lengths of the rows, `[out]`, f32: the paper's m.
    pub vector: Tensor,
    /// Squared lengths of the base weight's rows, `[out]` f32.
    squares: Tensor,
    /// The result of [`Magnitude::gain`], if it is known.
    gain: Option<Tensor>,
}

impl Magnitude {
    /// The given lengths, or those of the rows of `W + scale · B · A`.
    pub fn new(
        linear: &Linear,
        [a, b]: [&Tensor; 2],
        scale: f64,
        given: Option<&Tensor>,
        model: &Model,
    ) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let dense = linear.weight().dense(Kind::Float)?;
        let squares = ops::sum_rows(&ops::multiply(&dense, &dense)?)?;
        let vector = match given {
            Some(given) => given.shallow_clone(),
            None => lengths(&ops::add(&dense, &ops::scale(&ops::matmul(b, a)?, scale)?)?)?,
        };
        Ok(Self { vector: trained(&vector, model)?, squares, gain: None })
    }

    /// The factor that gives each row of `W + scale · B · A` its trained length, `[out]` f32. The row's
    /// actual length is treated as constant (section 4.3 of the paper). Products with the base weight are
    /// computed in `kind`, the type of the activations.
    ///
    /// The sum is never stored: its squared lengths are `|W|² + 2 · scale · W Aᵀ · B + scale² · B A Aᵀ · B`,
    /// row by row.
    pub fn gain(&self, linear: &Linear, [a, b]: [&Tensor; 2], scale: f64, kind: Kind) -> Result<Tensor> {
        if let Some(gain) = &self.gain {
            return Ok(gain.shallow_clone());
        }
        let length = {
            let _guard = tch::no_grad_guard();
            let along = linear.weight().linear(&ops::to_kind(a, kind)?, None)?;
            let along = ops::transpose(&along, 0, 1)?; // W Aᵀ, [out, rank]
            let own = ops::matmul(b, &ops::matmul(a, &ops::transpose(a, 0, 1)?)?)?; // B A Aᵀ
            let mixed = ops::add(
                &ops::scale(&ops::to_kind(&along, Kind::Float)?, 2.0 * scale)?,
                &ops::scale(&own, scale * scale)?,
            )?;
            ops::square_root(&ops::add(&self.squares, &ops::sum_rows(&ops::multiply(&mixed, b)?)?)?)?
        };
        ops::divide(&self.vector, &length)
    }

    /// The same lengths with the gain of these factors.
    pub fn settled(&self, linear: &Linear, factors: [&Tensor; 2], scale: f64, kind: Kind) -> Result<Self> {
        let gain = Some(self.gain(linear, factors, scale, kind)?);
        let [vector, squares] = [&self.vector, &self.squares].map(Tensor::shallow_clone);
        Ok(Self { vector, squares, gain })
    }

    /// The rows of `sum`, scaled to their trained lengths.
    pub fn fold(&self, sum: &Tensor) -> Result<Tensor> {
        let length = {
            let _guard = tch::no_grad_guard();
            lengths(&ops::to_kind(sum, Kind::Float)?)?
        };
        let vector = ops::to_device(&self.vector, sum.device())?;
        let gain = ops::reshape(&ops::divide(&vector, &length)?, &[-1, 1])?;
        ops::to_kind(&ops::multiply(sum, &gain)?, sum.kind())
    }
}

/// `y` `[N, out]` without its bias, scaled by `gain` `[out]`; the bias is not scaled.
pub(super) fn stretch(y: &Tensor, gain: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let stretched = match bias {
        // gain · (y - bias) + bias
        Some(bias) => {
            let rest = ops::subtract(bias, &ops::multiply(gain, bias)?)?;
            ops::add(&ops::multiply(y, gain)?, &rest)?
        }
        None => ops::multiply(y, gain)?,
    };
    ops::to_kind(&stretched, y.kind())
}

/// Lengths of the rows of an f32 matrix.
fn lengths(matrix: &Tensor) -> Result<Tensor> {
    ops::square_root(&ops::sum_rows(&ops::multiply(matrix, matrix)?)?)
}
