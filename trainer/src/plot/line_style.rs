//! Colours, dashes and marks that tell lines apart.

use std::iter::{Once, once};

use plotters::element::{Drawable, PointCollection};
use plotters::prelude::*;
use plotters_backend::{BackendCoord, DrawingErrorKind};

/// Colours of the sources: those of Okabe and Ito, chosen for people with colour-vision deficiencies,
/// with the yellow darkened, which would be faint on white, and a brown and a violet. Colours that
/// some see as close have different marks. Their blue and black belong to training and to the
/// validation over all sources.
const COLORS: [(RGBColor, Shape); 8] = [
    (RGBColor(213, 94, 0), Shape::Circle),
    (RGBColor(0, 158, 115), Shape::Square),
    (RGBColor(204, 121, 167), Shape::Triangle),
    (RGBColor(230, 159, 0), Shape::Diamond),
    (RGBColor(86, 180, 233), Shape::Cross),
    (RGBColor(120, 80, 40), Shape::Triangle),
    (RGBColor(110, 60, 160), Shape::Circle),
    (RGBColor(150, 150, 0), Shape::Cross),
];

const SHAPES: [Shape; 5] =
    [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Diamond, Shape::Cross];

/// Lengths of dash and gap in pixels; none for a line without gaps.
const DASHES: [Option<(u32, u32)>; 3] = [None, Some((10, 5)), Some((3, 4))];

/// Half the size of a mark in pixels.
const RADIUS: i32 = 4;

/// How one line is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LineStyle {
    pub color: RGBColor,
    /// In pixels.
    pub width: u32,
    pub dash: Option<(u32, u32)>,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
    Cross,
}

impl LineStyle {
    /// The style of the source of this number. When all colours were used, they come again with
    /// another dash and another mark.
    pub fn of_source(number: usize) -> Self {
        let (color, shape) = COLORS[number % COLORS.len()];
        let round = number / COLORS.len();
        let dash = DASHES[round % DASHES.len()];
        let shape = SHAPES[(shape as usize + round) % SHAPES.len()];
        Self { color, width: 2, dash, shape }
    }

    /// The style of the line over all sources.
    pub fn of_all(color: RGBColor) -> Self {
        Self { color, width: 3, dash: None, shape: Shape::Diamond }
    }
}

/// The mark of a line at a point.
#[derive(Debug)]
pub(super) struct Mark<Coord> {
    at: Coord,
    style: LineStyle,
}

impl<Coord> Mark<Coord> {
    pub fn new(at: Coord, style: LineStyle) -> Self {
        Self { at, style }
    }
}

impl<'a, Coord> PointCollection<'a, Coord> for &'a Mark<Coord> {
    type Point = &'a Coord;
    type IntoIter = Once<&'a Coord>;

    fn point_iter(self) -> Self::IntoIter {
        once(&self.at)
    }
}

impl<Coord, DB: DrawingBackend> Drawable<DB> for Mark<Coord> {
    fn draw<I: Iterator<Item = BackendCoord>>(
        &self,
        mut points: I,
        backend: &mut DB,
        _parent: (u32, u32),
    ) -> Result<(), DrawingErrorKind<DB::ErrorType>> {
        const R: i32 = RADIUS;
        let Some((x, y)) = points.next() else { return Ok(()) };
        let at = |(dx, dy): (i32, i32)| (x + dx, y + dy);
        let color = self.style.color;
        match self.style.shape {
            Shape::Circle => backend.draw_circle((x, y), R as u32, &color, true),
            Shape::Square => backend.draw_rect(at((-R, -R)), at((R, R)), &color, true),
            Shape::Triangle => {
                backend.fill_polygon([(0, -R - 2), (-R - 1, R), (R + 1, R)].map(at), &color)
            }
            Shape::Diamond => backend
                .fill_polygon([(0, -R - 2), (R + 2, 0), (0, R + 2), (-R - 2, 0)].map(at), &color),
            Shape::Cross => {
                let stroke = color.stroke_width(2);
                backend.draw_line(at((-R, -R)), at((R, R)), &stroke)?;
                backend.draw_line(at((-R, R)), at((R, -R)), &stroke)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_sources_have_a_hundred_styles() {
        let mut styles: Vec<LineStyle> = vec![LineStyle::of_all(BLACK)];
        for number in 0..100 {
            let style = LineStyle::of_source(number);
            assert!(!styles.contains(&style), "{number}: {style:?}");
            styles.push(style);
        }
        // The first eight differ in colour already.
        for (number, style) in styles[1..9].iter().enumerate() {
            assert!(styles[..=number].iter().all(|other| other.color != style.color), "{number}");
        }
    }
}
