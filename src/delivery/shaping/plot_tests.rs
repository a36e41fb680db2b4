//! Plots of what a test measured, as SVG that a reader of the documentation sees.

use plotters::prelude::*;

/// One curve.
pub struct Line {
    /// Its name in the legend.
    pub name: &'static str,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// Axes and curves.
pub struct Plot {
    /// Above it.
    pub title: &'static str,
    /// Below it.
    pub x: &'static str,
    /// Beside it.
    pub y: &'static str,
    /// The curves.
    pub lines: Vec<Line>,
}

const SIZE: (u32, u32) = (760, 300);
const COLOURS: [RGBColor; 3] = [RGBColor(0x9a, 0xa5, 0xb1), RGBColor(0x0b, 0x6e, 0x99), RGBColor(0xc2, 0x41, 0x0c)];

impl Plot {
    /// Writes it to the documentation if that is asked for; it is drawn in any case.
    pub fn write(&self, name: &str) {
        let mut text = String::new();
        self.draw(&mut text).unwrap();
        for (line, RGBColor(red, green, blue)) in self.coloured() {
            let stroke = format!("stroke=\"#{red:02X}{green:02X}{blue:02X}\"");
            assert_eq!(text.matches(&stroke).count(), 2, "the curve {} and its mark in the legend", line.name);
            assert!(text.contains(line.name));
        }
        assert!(text.ends_with("</svg>\n"));
        if std::env::var_os("POSTERN_WRITE_DOCUMENTS").is_some() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operate/shaping");
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(format!("{folder}/{name}.svg"), text).unwrap();
        }
    }

    /// Each curve with its colour.
    fn coloured(&self) -> impl Iterator<Item = (&Line, RGBColor)> {
        let colours = COLOURS.into_iter().cycle().skip(usize::from(self.lines.len() == 1));
        self.lines.iter().zip(colours)
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x_max = points().map(|point| point.0).fold(1.0, f64::max).ceil();
        let y_max = points().map(|point| point.1).fold(1.0, f64::max) * 1.05;
        let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(38)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..x_max, 0.0..y_max)?;
        let round = |value: &f64| format!("{value:.0}");
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().light_line_style(TRANSPARENT).label_style(("sans-serif", 14));
        mesh.x_desc(self.x).y_desc(self.y).x_labels(9).y_labels(5);
        mesh.x_label_formatter(&round).y_label_formatter(&round).draw()?;
        for (line, colour) in self.coloured() {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), style))?
                .label(line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        }
        let mut legend = chart.configure_series_labels();
        legend.position(SeriesLabelPosition::UpperRight).label_font(("sans-serif", 14));
        legend.background_style(WHITE.mix(0.8)).draw()?;
        area.present()?;
        Ok(())
    }
}
