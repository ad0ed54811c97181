//! Loss against offered rate, as a picture.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use capture_user::units;
use plotters::prelude::*;

use super::{Line, Spread};

const WIDTH: u32 = 960;
const HEIGHT: u32 = 600;
/// Told apart with any sight, on paper too (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(120, 120, 120),
];

/// Draws each subject's line, with the range of its runs at every point.
pub(crate) fn draw(lines: &[Line], title: &str, path: &Path) -> Result<()> {
    let mut picture = String::new();
    plot(lines, title, &mut picture)?;
    std::fs::write(path, picture).with_context(|| format!("writing {}", path.display()))
}

fn plot(lines: &[Line], title: &str, picture: &mut String) -> Result<()> {
    let most = |read: &dyn Fn(&Line) -> Spread| {
        lines.iter().map(|line| read(line).max).fold(0.0_f64, f64::max)
    };
    let fastest = most(&|line| line.offered);
    let worst = most(&|line| line.loss_percent);
    // Without any loss, the picture shows where one per cent would be.
    let top = if worst > 0.0 { worst * 1.1 } else { 1.0 };

    let root = SVGBackend::with_string(picture, (WIDTH, HEIGHT)).into_drawing_area();
    let failed = |error| anyhow!("drawing the picture: {error}");
    root.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..(fastest * 1.05).max(1.0), 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("offered, frames a second")
        .y_desc("lost, per cent")
        .x_label_formatter(&|rate| units::Rate(*rate).to_string())
        .light_line_style(WHITE)
        .draw()
        .map_err(failed)?;
    for (number, subject) in subjects(lines).into_iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let mut points: Vec<&Line> = lines.iter().filter(|line| line.subject == subject).collect();
        points.sort_by(|a, b| a.offered.median.total_cmp(&b.offered.median));
        let at = |line: &&Line| (line.offered.median, line.loss_percent.median);
        chart
            .draw_series(LineSeries::new(points.iter().map(at), colour.stroke_width(2)))
            .map_err(failed)?
            .label(subject)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        let ranges = points.iter().map(|line| {
            let Spread { median, min, max } = line.loss_percent;
            ErrorBar::new_vertical(line.offered.median, min, median, max, colour.filled(), 8)
        });
        chart.draw_series(ranges).map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
        .map_err(failed)?;
    root.present().map_err(failed)?;
    Ok(())
}

/// Subjects in the order in which they appear.
fn subjects(lines: &[Line]) -> Vec<&str> {
    let mut subjects: Vec<&str> = Vec::new();
    for line in lines {
        if !subjects.contains(&line.subject.as_str()) {
            subjects.push(&line.subject);
        }
    }
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drops::rate::Rate;

    fn line(subject: &str, offered: f64, loss_percent: f64) -> Line {
        Line {
            subject: subject.to_owned(),
            asked: Rate::Flood,
            runs: 1,
            offered: Spread::of([offered]),
            sent: 1,
            lost: 0,
            loss_percent: Spread::of([loss_percent, loss_percent * 2.0]),
            subject_ns: Spread::default(),
            softirq_ns: Spread::default(),
            busy_ns: Spread::default(),
            peak_memory_bytes: Spread::default(),
            latency: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn every_subject_has_its_line() {
        let lines = [line("one", 1e5, 0.0), line("one", 1e6, 3.0), line("<two>", 1e6, 1.0)];
        let mut picture = String::new();
        plot(&lines, "a title", &mut picture).unwrap();
        assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
        for text in ["one", "&lt;two&gt;", "a title", "1.00 M"] {
            assert!(picture.contains(text), "{text}: {picture}");
        }
        assert!(picture.matches("<polyline").count() >= 2);
    }

    #[test]
    fn nothing_measured_is_no_failure() {
        plot(&[], "", &mut String::new()).unwrap();
        plot(&[line("one", 0.0, 0.0)], "", &mut String::new()).unwrap();
    }
}
