//! The global norm of the gradient, and clipping by it.

use altiplano_model::adapters::Adapters;
use altiplano_model::param_ops::sums_of_squares;
use altiplano_model::param_tree::Param;
use altiplano_model::params::Grads;

/// Σ g² over all parameters.
///
/// # Errors
/// The first parameter whose gradient is not finite.
pub fn squared_norm(grads: &Grads) -> Result<f64, Param> {
    let mut total = 0.0;
    for ((param, _), squares) in grads.iter().zip(sums_of_squares(grads)) {
        if !squares.is_finite() {
            return Err(param);
        }
        total += squares;
    }
    Ok(total)
}

/// The same over adapters.
///
/// # Errors
/// The number of the first tensor whose gradient is not finite.
pub fn squared_norm_of_adapters(grads: &Adapters) -> Result<f64, usize> {
    let mut total = 0.0;
    for (number, squares) in grads.sums_of_squares().into_iter().enumerate() {
        if !squares.is_finite() {
            return Err(number);
        }
        total += squares;
    }
    Ok(total)
}

/// The factor that brings a gradient of norm `norm` to at most `max_norm`, as PyTorch's
/// `clip_grad_norm_` computes it; 1 when `max_norm` is 0.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_gradients_are_shortened() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(50.0, 0.0), 1.0);
        assert!((clip_factor(4.0, 1.0) * 4.0 - 1.0).abs() < 1e-6);
    }
}
