//! When a step stands out of the recent ones: a moving window of a loss or a gradient norm.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// How far a value lies from the recent ones: a moving window of a loss or a gradient norm.
///
/// Its content is part of a checkpoint, so a resumed run skips the same steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OutlierWindow {
    values: VecDeque<f64>,
}

impl OutlierWindow {
    /// Values of the window.
    pub const LENGTH: usize = 128;

    /// The distance of `value` from the mean of the window in standard deviations; `None` until the
    /// window is full, or when all its values are equal. Then adds `value` to the window, so a
    /// lasting change stops being an outlier.
    pub fn z_score(&mut self, value: f64) -> Option<f64> {
        let z = self.distance(value);
        if self.values.len() == Self::LENGTH {
            self.values.pop_front();
        }
        self.values.push_back(value);
        z
    }

    fn distance(&self, value: f64) -> Option<f64> {
        if self.values.len() < Self::LENGTH {
            return None;
        }
        let n = self.values.len() as f64;
        let mean = self.values.iter().sum::<f64>() / n;
        let variance = self.values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        (variance > 0.0).then(|| (value - mean) / variance.sqrt())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_stands_out_of_a_full_window() {
        let mut window = OutlierWindow::default();
        for i in 0..OutlierWindow::LENGTH {
            assert_eq!(window.z_score(if i % 2 == 0 { 1.0 } else { 3.0 }), None);
        }
        // Mean 2, standard deviation 1.
        assert_eq!(window.z_score(7.0), Some(5.0));
        let json = serde_json::to_string(&window).unwrap();
        let mut restored: OutlierWindow = serde_json::from_str(&json).unwrap();
        assert_eq!(restored.z_score(2.5), window.z_score(2.5));
        // A lasting change is no outlier for ever.
        let last = (0..OutlierWindow::LENGTH).map(|i| window.z_score(9.0 + (i % 2) as f64)).last();
        assert!(last.unwrap().unwrap() < 3.0);
    }

    #[test]
    fn equal_values_have_no_score() {
        let mut window = OutlierWindow::default();
        for _ in 0..OutlierWindow::LENGTH {
            assert_eq!(window.z_score(1.0), None);
        }
        assert_eq!(window.z_score(2.0), None);
    }
}
