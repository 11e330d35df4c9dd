//! The curves of a run as pictures: `loss.svg` and `loss.png`, and those of scores in tasks.
//!
//! Of the loss, above: the training loss of every step (faint) and its running mean, and the loss on held-out
//! documents, over all and for each source. Below: the learning rate. The letters come from a font
//! inside the program, so nothing needs to be installed.

mod line_style;
mod scores;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use altiplano_data::atomic_file::scratch_folder;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

pub use self::scores::draw_scores;

use self::line_style::{LineStyle, Mark};
use crate::error::{Result, TrainerError};
use crate::metrics::{History, StepMetrics, ValidationMetrics};

/// Size of the picture in pixels.
const SIZE: (u32, u32) = (1200, 800);

/// Height of the lower panel in pixels.
const LR_HEIGHT: u32 = 190;

/// Most points of a line: more than there are pixels to tell them apart.
const MOST_POINTS: usize = 2000;

const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(228, 228, 228);
const TRAIN: RGBColor = RGBColor(0, 90, 160);

/// Most marks on a line: more would hide it.
const MOST_MARKS: usize = 25;

/// Draws `loss.svg` and `loss.png` into the directory of a run; each appears whole, in place of the
/// one before. Without metrics nothing is drawn.
///
/// # Errors
/// [`TrainerError::Plot`] or [`TrainerError::Io`] when a picture cannot be drawn or written.
pub fn draw_loss(run_dir: &Path, title: &str, history: &History) -> Result<()> {
    let curves = Curves::new(history);
    if curves.raw.is_empty() {
        return Ok(());
    }
    let svg = |path: &Path| draw(&SVGBackend::new(path, SIZE).into_drawing_area(), title, &curves);
    let png =
        |path: &Path| draw(&BitMapBackend::new(path, SIZE).into_drawing_area(), title, &curves);
    write_pictures(run_dir, "loss", svg, png)
}

/// Draws `NAME.svg` and `NAME.png` under other names and renames them.
fn write_pictures(
    run_dir: &Path,
    name: &str,
    svg: impl FnOnce(&Path) -> std::result::Result<(), String>,
    png: impl FnOnce(&Path) -> std::result::Result<(), String>,
) -> Result<()> {
    let scratch = scratch_folder(run_dir)?;
    let [svg_name, png_name] = ["svg", "png"].map(|ending| format!("{name}.{ending}"));
    let [svg_path, png_path] = [&svg_name, &png_name].map(|name| scratch.path().join(name));
    let path = run_dir.join(&svg_name);
    let drawn = register().and_then(|()| svg(&svg_path));
    drawn.map_err(|reason| TrainerError::Plot { path: path.clone(), reason })?;
    std::fs::rename(&svg_path, &path).map_err(TrainerError::io(&path))?;
    let path = run_dir.join(&png_name);
    png(&png_path).map_err(|reason| TrainerError::Plot { path: path.clone(), reason })?;
    std::fs::rename(&png_path, &path).map_err(TrainerError::io(&path))
}

/// Makes the font known to the drawing library, once.
fn register() -> std::result::Result<(), String> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let bytes = epaint_default_fonts::UBUNTU_LIGHT;
    let registered =
        REGISTERED.get_or_init(|| register_font(FONT, FontStyle::Normal, bytes).is_ok());
    if *registered { Ok(()) } else { Err("the built-in font cannot be read".into()) }
}

type Line = Vec<(f64, f64)>;

/// What is drawn, as points (step, value).
struct Curves {
    raw: Line,
    smooth: Line,
    lr: Line,
    /// Empty where there is one source, whose line it would be.
    validation: Line,
    sources: BTreeMap<String, Line>,
}

impl Curves {
    fn new(history: &History) -> Self {
        let line = |value: fn(&StepMetrics) -> f64| -> Line {
            let points = history.steps.iter().map(|m| (m.step as f64, value(m)));
            points.filter(|(_, value)| value.is_finite()).collect()
        };
        let raw = line(|m| m.loss);
        let initial = history.initial.iter().map(|initial| (0.0, &initial.validation));
        let later =
            history.steps.iter().filter_map(|m| Some((m.step as f64, m.validation.as_ref()?)));
        let validations: Vec<(f64, &ValidationMetrics)> = initial.chain(later).collect();

        let mut sources: BTreeMap<String, Line> = BTreeMap::new();
        for &(step, validation) in &validations {
            for (source, &loss) in &validation.val_loss_per_source {
                if loss.is_finite() {
                    sources.entry(source.clone()).or_default().push((step, loss));
                }
            }
        }
        let all = validations.iter().map(|&(step, validation)| (step, validation.val_loss));
        let all = all.filter(|(_, loss)| loss.is_finite() && sources.len() > 1).collect();
        Self {
            smooth: sparse(running_mean(&raw)),
            raw: thin(raw),
            lr: thin(line(|m| m.lr)),
            validation: all,
            sources,
        }
    }

    fn loss_points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.raw.iter().chain(&self.validation).chain(self.sources.values().flatten())
    }

    fn steps(&self) -> std::ops::Range<f64> {
        let (low, high) = bounds(self.loss_points().map(|point| point.0));
        low.min(high - 1.0)..high
    }

    fn losses(&self) -> std::ops::Range<f64> {
        let (low, high) = bounds(self.loss_points().map(|point| point.1));
        let margin = (0.04 * (high - low)).max(0.01);
        (low - margin).max(0.0)..high + margin
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// Mean over about a fiftieth of the run around each step. At the start, where the loss falls fast,
/// the window shrinks on both sides; at the end it shrinks on the far side only, so that the last
/// value is no single step.
fn running_mean(line: &[(f64, f64)]) -> Line {
    let widest = line.len() / 100;
    let mut sums = vec![0.0];
    for (index, &(_, value)) in line.iter().enumerate() {
        sums.push(sums[index] + value);
    }
    let mean = |(index, &(step, _)): (usize, &(f64, f64))| {
        let before = widest.min(index);
        let after = before.min(line.len() - 1 - index);
        let sum = sums[index + after + 1] - sums[index - before];
        (step, sum / (before + 1 + after) as f64)
    };
    line.iter().enumerate().map(mean).collect()
}

/// Of every run of neighbours keeps the lowest and the highest, so spikes stay visible.
fn thin(line: Line) -> Line {
    if line.len() <= MOST_POINTS {
        return line;
    }
    let bucket = line.len().div_ceil(MOST_POINTS / 2);
    let mut thinned = Vec::with_capacity(MOST_POINTS);
    for points in line.chunks(bucket) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let low = points.iter().min_by(by_value);
        let high = points.iter().max_by(by_value);
        let mut pair: Line = low.into_iter().chain(high).copied().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair.dedup();
        thinned.extend(pair);
    }
    thinned
}

/// Keeps every n-th point of a line that is smooth already, and the last.
fn sparse(line: Line) -> Line {
    let every = line.len().div_ceil(MOST_POINTS).max(1);
    let last = line.last().copied().filter(|_| !(line.len() - 1).is_multiple_of(every));
    line.iter().copied().step_by(every).chain(last).collect()
}

/// Errors become text: each backend has a type of its own for them.
fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    title: &str,
    curves: &Curves,
) -> std::result::Result<(), String> {
    let text = |error: DrawingAreaErrorKind<DB::ErrorType>| error.to_string();
    area.fill(&WHITE).map_err(text)?;
    let (upper, lower) = area.split_vertically(SIZE.1 - LR_HEIGHT);
    draw_losses(&upper, title, curves).map_err(text)?;
    draw_lr(&lower, curves).map_err(text)?;
    area.present().map_err(text)
}

type Drawn<DB> = std::result::Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

fn draw_losses<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    title: &str,
    curves: &Curves,
) -> Drawn<DB> {
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{title}: loss"), (FONT, 28).into_font().color(&INK))
        .margin(14)
        .margin_right(28)
        .set_label_area_size(LabelAreaPosition::Left, 86)
        .set_label_area_size(LabelAreaPosition::Bottom, 34)
        .build_cartesian_2d(curves.steps(), curves.losses())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_labels(10)
        .x_label_formatter(&|step| count(*step))
        .y_labels(9)
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .y_desc("cross entropy (nats per token)")
        .label_style((FONT, 18).into_font().color(&INK))
        .axis_desc_style((FONT, 20).into_font().color(&INK))
        .draw()?;
    chart
        .draw_series(LineSeries::new(curves.raw.iter().copied(), TRAIN.mix(0.4).stroke_width(1)))?
        .label("train, every step")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 26, y)], TRAIN.mix(0.5).stroke_width(1)));
    chart
        .draw_series(LineSeries::new(curves.smooth.iter().copied(), TRAIN.stroke_width(3)))?
        .label("train, running mean")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 26, y)], TRAIN.stroke_width(3)));
    let of_source = |(number, (source, line))| (source, line, LineStyle::of_source(number));
    let sources = curves.sources.iter().enumerate().map(of_source);
    let all = ("all sources".to_string(), &curves.validation, LineStyle::of_all(INK));
    let all = std::iter::once((&all.0, all.1, all.2)).filter(|(_, line, _)| !line.is_empty());
    for (name, line, style) in sources.chain(all) {
        let stroke = style.color.stroke_width(style.width);
        let points = line.iter().copied();
        match style.dash {
            None => chart.draw_series(LineSeries::new(points, stroke))?,
            Some((dash, gap)) => {
                chart.draw_series(DashedLineSeries::new(points, dash, gap, stroke))?
            }
        };
        let every = line.len().div_ceil(MOST_MARKS).max(1);
        chart
            .draw_series(line.iter().step_by(every).map(|&point| Mark::new(point, style)))?
            .label(format!("validation, {name}"))
            .legend(move |(x, y)| {
                let dash = style.dash.map_or(26, |(dash, _)| dash as i32);
                EmptyElement::at((x, y))
                    + PathElement::new([(0, 0), (dash, 0)], stroke)
                    + PathElement::new([(26 - dash, 0), (26, 0)], stroke)
                    + Mark::new((13, 0), style)
            });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .legend_area_size(34)
        .margin(14)
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .label_font((FONT, 19).into_font().color(&INK))
        .draw()
}

fn draw_lr<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, curves: &Curves) -> Drawn<DB> {
    let (_, high) = bounds(curves.lr.iter().map(|point| point.1));
    let high = if high > 0.0 { high * 1.12 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .margin_top(0)
        .margin_right(28)
        .set_label_area_size(LabelAreaPosition::Left, 86)
        .set_label_area_size(LabelAreaPosition::Bottom, 54)
        .build_cartesian_2d(curves.steps(), 0.0..high)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_labels(10)
        .x_label_formatter(&|step| count(*step))
        .y_labels(4)
        .y_label_formatter(&|lr| {
            if *lr == 0.0 { "0".into() } else { format!("{lr:.1e}") }
        })
        .x_desc("step")
        .y_desc("learning rate")
        .label_style((FONT, 18).into_font().color(&INK))
        .axis_desc_style((FONT, 20).into_font().color(&INK))
        .draw()?;
    chart.draw_series(LineSeries::new(curves.lr.iter().copied(), INK.stroke_width(2)))?;
    Ok(())
}

/// 1500 as `1500`, 20000 as `20k`, 2500000 as `2.5M`.
fn count(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{}M", (value / 1e5).round() / 10.0),
        v if v >= 1e4 => format!("{}k", (value / 1e2).round() / 10.0),
        _ => format!("{}", (value * 10.0).round() / 10.0),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::metrics::InitialMetrics;

    const SOURCES: [(&str, f64); 7] = [
        ("common_crawl", 0.3),
        ("c4", 0.2),
        ("github", -0.9),
        ("wikipedia", 0.05),
        ("books", 0.45),
        ("arxiv", -0.45),
        ("stack_exchange", -0.2),
    ];

    /// A run as it looks: noise around a falling loss, validations of seven sources.
    fn run(steps: u64) -> History {
        let mut noise = 1u64;
        let validation = |trend: f64| ValidationMetrics {
            val_loss: trend,
            val_loss_per_source: SOURCES
                .iter()
                .map(|(name, shift)| (name.to_string(), trend + shift * (1.0 - trend / 9.2)))
                .collect(),
            ..Default::default()
        };
        let step = |step: u64| {
            noise = noise.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let shake = (noise >> 40) as f64 / (1u64 << 24) as f64 - 0.5;
            let trend =
                2.6 + 5.7 * (-(step as f64) / 60.0).exp() + 0.9 / (1.0 + step as f64 / 200.0);
            let validation = step.is_multiple_of(50).then(|| validation(trend));
            let lr = if step <= 40 {
                step as f64 / 40.0
            } else {
                0.55 + 0.45
                    * (std::f64::consts::PI * (step - 40) as f64 / (steps - 40) as f64).cos()
            };
            StepMetrics {
                step,
                loss: trend + 0.5 * shake,
                lr: 2e-3 * lr,
                validation,
                ..Default::default()
            }
        };
        let initial = InitialMetrics { validation: validation(9.2), ..Default::default() };
        History { initial: Some(initial), steps: (1..=steps).map(step).collect() }
    }

    fn steps_of(steps: Vec<StepMetrics>) -> History {
        History { initial: None, steps }
    }

    #[test]
    fn both_pictures_are_drawn_with_titled_axes_and_a_legend() {
        let dir = tempfile::tempdir().unwrap();
        draw_loss(dir.path(), "quickstart", &run(600)).unwrap();
        let svg = std::fs::read_to_string(dir.path().join("loss.svg")).unwrap();
        for text in [
            "quickstart: loss",
            "step",
            "learning rate",
            "nats per token",
            "validation, books",
            "validation, all sources",
            "train, running mean",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        let png = std::fs::read(dir.path().join("loss.png")).unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        // Letters and lines, not an empty page.
        assert!(png.len() > 20_000, "{}", png.len());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
        if let Some(out) = std::env::var_os("ALTIPLANO_TEST_PLOT") {
            std::fs::copy(dir.path().join("loss.png"), out).unwrap();
        }
    }

    #[test]
    fn short_and_odd_runs_are_drawn_too() {
        let dir = tempfile::tempdir().unwrap();
        draw_loss(dir.path(), "empty", &History::default()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        draw_loss(dir.path(), "one", &steps_of(run(1000).steps[..1].to_vec())).unwrap();
        let mut odd = run(50);
        odd.steps[7].loss = f64::NAN;
        odd.steps[8].loss = f64::INFINITY;
        draw_loss(dir.path(), "odd & <strange> ü", &odd).unwrap();
        let flat: Vec<_> =
            (1..9).map(|step| StepMetrics { step, loss: 1.0, ..Default::default() }).collect();
        draw_loss(dir.path(), "flat", &steps_of(flat)).unwrap();
    }

    #[test]
    fn validations_begin_before_the_first_step() {
        let curves = Curves::new(&run(100));
        let steps = |line: &Line| -> Vec<f64> { line.iter().map(|point| point.0).collect() };
        assert_eq!(steps(&curves.validation), [0.0, 50.0, 100.0]);
        assert!(curves.sources.values().all(|line| steps(line) == [0.0, 50.0, 100.0]));
        assert_eq!((curves.sources.len(), curves.raw[0].0), (7, 1.0));
        assert_eq!(curves.steps(), 0.0..100.0);
        // The line of a single source is that of all.
        let mut single = run(100);
        for validation in single.steps.iter_mut().filter_map(|step| step.validation.as_mut()) {
            validation.val_loss_per_source.retain(|name, _| name == "books");
        }
        single.initial = None;
        let curves = Curves::new(&single);
        assert!(curves.validation.is_empty() && curves.sources["books"].len() == 2);
    }

    #[test]
    fn thinning_keeps_the_spikes() {
        let mut line: Line = (0..100_000).map(|i| (i as f64, 1.0)).collect();
        line[54_321].1 = 9.0;
        let thinned = thin(line);
        assert!(thinned.len() <= MOST_POINTS);
        assert!(thinned.contains(&(54_321.0, 9.0)));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn a_smooth_line_keeps_its_ends() {
        for length in [0, 1, 2000, 2001, 4001, 99_999] {
            let line: Line = (0..length).map(|i| (i as f64, 0.0)).collect();
            let kept = sparse(line.clone());
            assert!(kept.len() <= MOST_POINTS + 1, "{length}");
            assert_eq!((kept.first(), kept.last()), (line.first(), line.last()));
        }
    }

    #[test]
    fn the_running_mean_follows_a_straight_line_without_lag() {
        let line: Line = (0..500).map(|i| (i as f64, 8.0 - 0.01 * i as f64)).collect();
        for (mean, exact) in running_mean(&line).iter().zip(&line).take(495) {
            assert!((mean.1 - exact.1).abs() < 1e-9 && mean.0 == exact.0);
        }
        let flips: Line = (0..1000).map(|i| (i as f64, (i % 2) as f64)).collect();
        let mean = running_mean(&flips);
        assert!(mean[20..980].iter().all(|point| (point.1 - 0.5).abs() < 0.05));
        assert_eq!(mean[0], flips[0]);
    }
}
