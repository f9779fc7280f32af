//! Curves as SVG and in the terminal.
use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// A line of a chart.
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// Points, x ascending.
    pub points: Vec<(f64, f64)>,
}

/// What is drawn.
pub struct Chart<'a> {
    /// Above the plot.
    pub title: &'a str,
    /// What x is.
    pub x: &'a str,
    /// What y is.
    pub y: &'a str,
    /// Whether x doubles from tick to tick.
    pub doubling: bool,
    /// The range of y; that of the points if absent.
    pub range: Option<(f64, f64)>,
    /// The lines.
    pub curves: Vec<Curve>,
}

impl Chart<'_> {
    /// x on its axis.
    fn place(&self, x: f64) -> f64 {
        if self.doubling { x.max(f64::MIN_POSITIVE).log2() } else { x }
    }
    /// The extent of the finite points.
    fn extent(&self) -> ((f64, f64), (f64, f64)) {
        let points = || self.curves.iter().flat_map(|c| &c.points).filter(|p| p.0.is_finite() && p.1.is_finite());
        let span = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
            match high - low {
                d if d > 0.0 => (low, high),
                _ if low.is_finite() => (low - 0.5, low + 0.5),
                _ => (0.0, 1.0),
            }
        };
        let x = span(&mut points().map(|p| self.place(p.0)));
        (x, self.range.unwrap_or_else(|| span(&mut points().map(|p| p.1))))
    }

    /// The chart as an SVG text.
    pub fn svg(&self) -> Result<String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|e| anyhow!("cannot draw {}: {e}", self.title))?;
        Ok(text)
    }
    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let ((x0, x1), (y0, y1)) = self.extent();
        let area = SVGBackend::with_string(text, (760, 440)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(42)
            .y_label_area_size(58)
            .build_cartesian_2d(x0..x1, y0..y1)?;
        let label = |x: &f64| if self.doubling { format!("{:.0}", x.exp2()) } else { format!("{x}") };
        let ticks = if self.doubling { (x1 - x0).round() as usize + 1 } else { 8 };
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_labels(ticks)
            .x_label_formatter(&label)
            .light_line_style(WHITE)
            .draw()?;
        for (i, curve) in self.curves.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            let points = curve.points.iter().filter(|p| p.1.is_finite()).map(|p| (self.place(p.0), p.1));
            let series = chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
            if !curve.name.is_empty() {
                series
                    .label(&curve.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            }
        }
        if self.curves.iter().any(|c| !c.name.is_empty()) {
            chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
        }
        area.present()?;
        Ok(())
    }

    /// The chart in characters, `width` by `height` of them for the plot itself.
    pub fn terminal(&self, width: usize, height: usize) -> String {
        let ((x0, x1), (y0, y1)) = self.extent();
        let mut cells = vec![vec![' '; width]; height];
        let column = |x: f64| ((self.place(x) - x0) / (x1 - x0) * (width - 1) as f64).round().max(0.0) as usize;
        let row = |y: f64| ((y1 - y.clamp(y0, y1)) / (y1 - y0) * (height - 1) as f64).round() as usize;
        for (i, curve) in self.curves.iter().enumerate() {
            let mark = ['●', '○', '▲', '△', '■', '□'][i % 6];
            for pair in curve.points.windows(2) {
                let (a, b) = (column(pair[0].0), column(pair[1].0).min(width - 1));
                for step in 0..=b.saturating_sub(a) {
                    let share = step as f64 / b.saturating_sub(a).max(1) as f64;
                    let line = row(pair[0].1 + share * (pair[1].1 - pair[0].1));
                    let cell = &mut cells[line][a.min(width - 1) + step];
                    if *cell == ' ' {
                        *cell = '·';
                    }
                }
            }
            for &(x, y) in curve.points.iter().filter(|p| p.1.is_finite()) {
                cells[row(y)][column(x).min(width - 1)] = mark;
            }
        }
        let mut out = format!("{}\n", self.title);
        for (i, line) in cells.iter().enumerate() {
            let y = y1 - (y1 - y0) * i as f64 / (height - 1).max(1) as f64;
            let label = if i % 2 == 0 { format!("{y:7.3}") } else { " ".repeat(7) };
            out += &format!("{label} │{}\n", line.iter().collect::<String>().trim_end());
        }
        out += &format!("{} └{}\n", " ".repeat(7), "─".repeat(width));
        let mut axis = vec![' '; width + 8];
        let mut last = None;
        for x in self.curves.iter().flat_map(|c| &c.points).map(|p| p.0) {
            let (at, text) = (column(x).min(width - 1), format!("{x}"));
            if last.is_none_or(|l| at > l + text.len()) {
                text.chars().enumerate().for_each(|(k, c)| axis[at + k] = c);
                last = Some(at + text.len() - 1);
            }
        }
        out += &format!("{}{}   {}\n", " ".repeat(9), axis.iter().collect::<String>().trim_end(), self.x);
        for (i, curve) in self.curves.iter().enumerate().filter(|(_, c)| !c.name.is_empty()) {
            out += &format!("{}{} {}\n", " ".repeat(9), ['●', '○', '▲', '△', '■', '□'][i % 6], curve.name);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart<'static> {
        let curve = |name: &str, last| Curve { name: name.into(), points: vec![(1.0, 0.5), (4.0, 0.75), (16.0, last)] };
        Chart {
            title: "accuracy",
            x: "iterations",
            y: "share",
            doubling: true,
            range: Some((0.0, 1.0)),
            curves: vec![curve("24 bits", 1.0), curve("32 bits", 0.9)],
        }
    }

    #[test]
    fn svg_names_its_parts() {
        let text = chart().svg().unwrap_or_default();
        for part in ["<svg", "accuracy", "iterations", "share", "24 bits", "32 bits", "</svg>"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn terminal_shows_points_and_ticks() {
        let text = chart().terminal(33, 9);
        assert!(text.lines().nth(1).is_some_and(|l| l.ends_with('●')), "{text}");
        assert!(text.contains("1       ") && text.contains("16") && text.contains("○ 32 bits"), "{text}");
        let empty = Chart { curves: vec![], range: None, ..chart() };
        assert!(empty.terminal(10, 3).contains("accuracy") && empty.svg().is_ok());
        let nothing = Chart { curves: vec![Curve { name: String::new(), points: vec![(3.0, f64::NAN)] }], ..chart() };
        assert!(nothing.svg().is_ok() && !nothing.terminal(10, 3).contains('●'));
    }
}
