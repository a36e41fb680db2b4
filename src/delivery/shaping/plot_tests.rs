//! Plots of what a test measured, as SVG that a reader of the documentation sees.

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

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 44.0;
const COLOURS: [&str; 3] = ["#9aa5b1", "#0b6e99", "#c2410c"];

impl Plot {
    /// Writes it to the documentation if that is asked for; its text is made in any case.
    pub fn write(&self, name: &str) {
        let text = self.svg();
        assert!(text.contains("<polyline") && text.ends_with("</svg>\n"));
        if std::env::var_os("POSTERN_WRITE_DOCUMENTS").is_some() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operate/shaping");
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(format!("{folder}/{name}.svg"), text).unwrap();
        }
    }

    fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x_max = points().map(|point| point.0).fold(1.0, f64::max).ceil();
        let y_max = nice(points().map(|point| point.1).fold(1.0, f64::max) * 1.05);
        let at = |(x, y): (f64, f64)| {
            let across = LEFT + x / x_max * (WIDTH - LEFT - 16.0);
            (across, TOP + (1.0 - y / y_max) * (HEIGHT - TOP - BOTTOM))
        };
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
            self.title
        );
        for part in 0..=4 {
            let value = y_max * f64::from(part) / 4.0;
            let (left, y) = at((0.0, value));
            let (right, _) = at((x_max, value));
            text += &format!(
                "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" stroke=\"#e4e7eb\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.0}</text>\n",
                left - 6.0,
                y + 4.0
            );
            let (x, y) = at((x_max * f64::from(part) / 4.0, 0.0));
            let value = x_max * f64::from(part) / 4.0;
            text += &format!("<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.0}</text>\n", y + 16.0);
        }
        let middle = (LEFT + WIDTH) / 2.0;
        text += &format!("<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", HEIGHT - 8.0, self.x);
        text += &format!(
            "<text x=\"14\" y=\"{0}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {0})\">{1}</text>\n",
            HEIGHT / 2.0,
            self.y
        );
        for (line, number) in self.lines.iter().zip(0_u8..) {
            let colour = COLOURS[(usize::from(number) + usize::from(self.lines.len() == 1)) % COLOURS.len()];
            let points: Vec<String> =
                line.points.iter().map(|point| at(*point)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            text += &format!(
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{}\"/>\n",
                points.join(" ")
            );
            let x = WIDTH - 170.0;
            let y = TOP + 12.0 + f64::from(number) * 16.0;
            text += &format!("<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{}</text>\n", line.name);
        }
        text + "</svg>\n"
    }
}

/// A round number that is at least this.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 8.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}
