//! The learning rate of a step.
use serde::{Deserialize, Serialize};

/// How the learning rate changes over a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// The shape.
    pub kind: Shape,
    /// Steps of warm-up: the W-th step is the first at the full rate, the t-th before it has t / W of it.
    pub warmup: Span,
    /// Steps of cooldown at the end of a trapezoid: the mirror image of a warm-up, down to `min_ratio` instead of 0.
    pub cooldown: Span,
    /// The least rate after warm-up, as a share of the full one.
    pub min_ratio: f64,
}

/// The shape of a schedule after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// The full rate to the end.
    Constant,
    /// The full rate, then a linear cooldown.
    #[default]
    Trapezoid,
    /// Half a period of a cosine from the full rate down to `min_ratio`.
    Cosine,
}

/// A number of steps: an integer, or a fraction below 1 of the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Span {
    /// So many steps.
    Steps(u64),
    /// This share of the run's steps.
    Share(f64),
}

impl Span {
    fn of(self, total: u64) -> u64 {
        match self {
            Span::Steps(steps) => steps.min(total),
            Span::Share(share) => ((share * total as f64).round() as u64).min(total),
        }
    }
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule { kind: Shape::default(), warmup: Span::Steps(0), cooldown: Span::Steps(0), min_ratio: 0.0 }
    }
}

impl Schedule {
    /// The factor on the full learning rate at a step, from 1 to `total`; the first of W warm-up steps has 1 / W.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        let (warmup, cooldown) = (self.warmup.of(total), self.cooldown.of(total));
        let between = |share: f64| self.min_ratio + (1.0 - self.min_ratio) * share;
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        match self.kind {
            Shape::Constant => 1.0,
            Shape::Trapezoid => {
                let left = total.saturating_sub(step) + 1;
                if left >= cooldown { 1.0 } else { between(left as f64 / cooldown as f64) }
            }
            Shape::Cosine => {
                let span = total.saturating_sub(warmup).max(1);
                let done = (step.min(total) - warmup.min(step)) as f64 / span as f64;
                between(0.5 * (1.0 + libm::cos(std::f64::consts::PI * done)))
            }
        }
    }
    /// What is wrong with the numbers, if something is.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), String> {
        for (name, span) in [("warmup", self.warmup), ("cooldown", self.cooldown)] {
            if let Span::Share(share) = span
                && !(0.0..=1.0).contains(&share)
            {
                return Err(format!("schedule.{name} = {share}: a fraction of the run is in 0..=1"));
            }
        }
        if !(0.0..=1.0).contains(&self.min_ratio) {
            return Err(format!("schedule.min_ratio = {} is not in 0..=1", self.min_ratio));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let trapezoid = Schedule { warmup: Span::Steps(4), cooldown: Span::Share(0.4), ..Schedule::default() };
        let factors: Vec<f64> = (1..=10).map(|t| trapezoid.factor(t, 10)).collect();
        assert_eq!(factors, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]);
        let floor = Schedule { min_ratio: 0.5, ..trapezoid.clone() };
        assert_eq!((floor.factor(1, 10), floor.factor(10, 10)), (0.25, 0.625));
        let constant = Schedule { kind: Shape::Constant, ..trapezoid };
        assert_eq!((constant.factor(2, 10), constant.factor(4, 10), constant.factor(10, 10)), (0.5, 1.0, 1.0));
        let cosine = Schedule { kind: Shape::Cosine, min_ratio: 0.1, warmup: Span::Steps(2), ..Schedule::default() };
        assert_eq!((cosine.factor(1, 10), cosine.factor(2, 10)), (0.5, 1.0));
        assert!((cosine.factor(6, 10) - 0.55).abs() < 1e-12 && (cosine.factor(10, 10) - 0.1).abs() < 1e-12);
        // The paper's: lr / 4096 first, constant, and beyond the end nothing strange.
        let paper = Schedule { warmup: Span::Steps(4096), cooldown: Span::Steps(4096), ..Schedule::default() };
        assert_eq!(paper.factor(1, 100_000), 1.0 / 4096.0);
        assert_eq!((paper.factor(50_000, 100_000), paper.factor(200_000, 100_000)), (1.0, 1.0 / 4096.0));
        assert_eq!(Schedule::default().factor(1, 1), 1.0);
        assert_eq!(cosine.factor(1, 1), 1.0);
    }

    #[test]
    fn numbers_that_make_no_sense() {
        let bad = Schedule { warmup: Span::Share(1.5), ..Schedule::default() };
        assert!(bad.check().unwrap_err().contains("schedule.warmup"));
        let bad = Schedule { min_ratio: -0.1, ..Schedule::default() };
        assert!(bad.check().unwrap_err().contains("min_ratio"));
        assert_eq!(toml::from_str::<Schedule>("kind = 'cosine'\nwarmup = 0.25").unwrap().warmup, Span::Share(0.25));
    }
}
