//! Scores in tasks against tokens, beside the training loss: `eval.svg` and `eval.png`, a panel a task.

use std::collections::BTreeMap;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::line_style::{LineStyle, Mark};
use super::{
    Drawn, FONT, GRID, INK, Line, MOST_MARKS, TRAIN, bounds, count, running_mean, sparse,
    write_pictures,
};
use crate::error::Result;
use crate::metrics::History;

/// Size of a panel in pixels.
const PANEL: (u32, u32) = (440, 330);

/// Most panels side by side.
const COLUMNS: usize = 4;

/// A panel: its title and its lines with their names, as points (tokens, value).
struct Panel {
    title: String,
    lines: Vec<(String, Line)>,
}

/// Draws `eval.svg` and `eval.png` into the directory of a run; each appears whole, in place of the one before.
/// Without scores nothing is drawn.
///
/// # Errors
/// As [`draw_loss`](super::draw_loss).
pub fn draw_scores(run_dir: &Path, title: &str, history: &History) -> Result<()> {
    let panels = panels(title, history);
    if panels.len() < 2 {
        return Ok(());
    }
    let columns = (1..).find(|n| n * n >= panels.len()).unwrap_or(1).min(COLUMNS);
    let rows = panels.len().div_ceil(columns);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
    let svg = |path: &Path| {
        draw(&SVGBackend::new(path, size).into_drawing_area(), (rows, columns), &panels)
    };
    let png = |path: &Path| {
        draw(&BitMapBackend::new(path, size).into_drawing_area(), (rows, columns), &panels)
    };
    write_pictures(run_dir, "eval", svg, png)
}

/// The training loss, then a panel for each task.
fn panels(title: &str, history: &History) -> Vec<Panel> {
    let losses: Line = history
        .steps
        .iter()
        .map(|step| (step.tokens as f64, step.loss))
        .filter(|(_, loss)| loss.is_finite())
        .collect();
    let mut tasks: BTreeMap<&str, BTreeMap<&str, Line>> = BTreeMap::new();
    for step in &history.steps {
        for (score, value) in step.evaluation.iter().flat_map(|found| &found.eval) {
            let (task, measure) = score.split_once('/').unwrap_or((score, ""));
            let line = tasks.entry(task).or_default().entry(measure).or_default();
            line.push((step.tokens as f64, *value));
        }
    }
    let loss = ("train".to_owned(), sparse(running_mean(&losses)));
    let first = Panel { title: format!("{title}: training loss"), lines: vec![loss] };
    let others = tasks.into_iter().map(|(task, lines)| Panel {
        title: task.to_owned(),
        lines: lines.into_iter().map(|(measure, line)| (measure.to_owned(), line)).collect(),
    });
    std::iter::once(first).chain(others).collect()
}

fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    grid: (usize, usize),
    panels: &[Panel],
) -> std::result::Result<(), String> {
    let text = |error: DrawingAreaErrorKind<DB::ErrorType>| error.to_string();
    area.fill(&WHITE).map_err(text)?;
    let last = panels.iter().flat_map(|panel| &panel.lines).flat_map(|(_, line)| line);
    let (_, last) = bounds(last.map(|point| point.0));
    for (n, (area, panel)) in area.split_evenly(grid).iter().zip(panels).enumerate() {
        draw_panel(area, panel, last, n == 0).map_err(text)?;
    }
    area.present().map_err(text)
}

/// Draws one panel, with tokens up to `last`.
fn draw_panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    panel: &Panel,
    last: f64,
    is_loss: bool,
) -> Drawn<DB> {
    let (low, high) = bounds(panel.lines.iter().flat_map(|(_, line)| line).map(|point| point.1));
    let margin = (0.06 * (high - low)).max(0.01);
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 20).into_font().color(&INK))
        .margin(10)
        .margin_right(20)
        .set_label_area_size(LabelAreaPosition::Left, 56)
        .set_label_area_size(LabelAreaPosition::Bottom, 44)
        .build_cartesian_2d(0.0..last.max(1.0), low - margin..high + margin)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_labels(5)
        .x_label_formatter(&|tokens| count(*tokens))
        .y_labels(6)
        .y_label_formatter(&|value| format!("{value:.3}"))
        .x_desc("tokens")
        .label_style((FONT, 14).into_font().color(&INK))
        .axis_desc_style((FONT, 15).into_font().color(&INK))
        .draw()?;
    if is_loss {
        for (_, line) in &panel.lines {
            chart.draw_series(LineSeries::new(line.iter().copied(), TRAIN.stroke_width(2)))?;
        }
        return Ok(());
    }
    for (n, (name, line)) in panel.lines.iter().enumerate() {
        let style = LineStyle::of_source(n);
        let stroke = style.color.stroke_width(style.width);
        chart.draw_series(LineSeries::new(line.iter().copied(), stroke))?;
        let every = line.len().div_ceil(MOST_MARKS).max(1);
        chart
            .draw_series(line.iter().step_by(every).map(|&point| Mark::new(point, style)))?
            .label(name)
            .legend(move |(x, y)| {
                EmptyElement::at((x, y))
                    + PathElement::new([(0, 0), (20, 0)], stroke)
                    + Mark::new((10, 0), style)
            });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .legend_area_size(26)
        .margin(8)
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .label_font((FONT, 14).into_font().color(&INK))
        .draw()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::metrics::{EvalMetrics, StepMetrics};

    fn history(scores: &[(&str, f64)]) -> History {
        let step = |step: u64| StepMetrics {
            step,
            tokens: 1000 * step,
            loss: 8.0 / step as f64,
            evaluation: step.is_multiple_of(10).then(|| EvalMetrics {
                eval: scores
                    .iter()
                    .map(|(name, by)| (name.to_string(), by * step as f64))
                    .collect(),
                eval_seconds: 1.0,
            }),
            ..Default::default()
        };
        History { initial: None, steps: (1..=40).map(step).collect() }
    }

    #[test]
    fn every_task_has_a_panel_beside_the_loss() {
        let dir = tempfile::tempdir().unwrap();
        draw_scores(dir.path(), "run", &history(&[])).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing to draw");
        let scores = [
            ("piqa/acc", 0.01),
            ("piqa/acc_norm", 0.011),
            ("boolq/acc", 0.02),
            ("nq_open/exact_match", 0.0),
        ];
        draw_scores(dir.path(), "run", &history(&scores)).unwrap();
        let svg = std::fs::read_to_string(dir.path().join("eval.svg")).unwrap();
        for text in [
            "run: training loss",
            "piqa",
            "boolq",
            "nq_open",
            "acc_norm",
            "exact_match",
            "tokens",
            "40k",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        let png = std::fs::read(dir.path().join("eval.png")).unwrap();
        assert!(png.len() > 10_000, "{}", png.len());
        if let Some(out) = std::env::var_os("ALTIPLANO_TEST_PLOT") {
            std::fs::copy(dir.path().join("eval.png"), out).unwrap();
        }
        let panels = panels("run", &history(&scores));
        assert_eq!(
            panels[3].lines[1].1,
            [10, 20, 30, 40].map(|n| (1000.0 * n as f64, 0.011 * n as f64))
        );
    }
}
