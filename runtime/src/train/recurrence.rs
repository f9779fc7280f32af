//! How many iterations a step runs: n without gradient, then k with gradient. A pure function of (seed, step), so that a resumed
//! run, and every worker, draws the same.
use crate::random::Draws;
use serde::{Deserialize, Serialize};

/// The iterations of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Depth {
    /// Iterations without gradient, which come first (n).
    pub no_grad: usize,
    /// Iterations with gradient (k).
    pub grad: usize,
}

/// What the depths of a run are drawn from. All but `fixed` draw a total p and *fill* it: with s = `backprop`,
/// n = max(p - s, 0) and k = min(s, p).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub struct Recurrence {
    /// The distribution.
    pub kind: Kind,
    /// Steps over which the depths grow to those of `kind`: at step t <= N the mean above s, and s, are ceil(t / N) of theirs (as
    /// in the paper's code). 0: none.
    pub curriculum: u64,
    /// An upper clamp of n + k, which cuts n. Without it the paper's distribution has none; a program always has its own, the
    /// max_steps that it is compiled for: [`Recurrence::rarely_above`] says how large that should be.
    pub max_steps: Option<usize>,
}

/// A distribution of depths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The paper's "poisson-lognormal-filling" (Geiping et al. 2025, arXiv 2502.05171, section 3.3): rate = exp(N(mu, sigma^2)) with
    /// mu = ln(mean) - sigma^2 / 2, p = Poisson(rate) + 1. The mean of p is `mean` + 1.
    LognormalPoisson {
        /// The mean of the rate; at least s counts.
        mean: usize,
        /// s, the most iterations with gradient.
        backprop: usize,
        /// Standard deviation of the logarithm of the rate.
        sigma: f64,
    },
    /// p = Poisson(mean) + 1.
    Poisson {
        /// The mean of p - 1; at least s counts.
        mean: usize,
        /// s, the most iterations with gradient.
        backprop: usize,
    },
    /// p uniform in min..=max.
    Uniform {
        /// Least p.
        min: usize,
        /// Most p.
        max: usize,
        /// s, the most iterations with gradient.
        backprop: usize,
    },
    /// Always the same.
    Fixed {
        /// n.
        no_grad: usize,
        /// k.
        grad: usize,
    },
}

/// A mean or a number of steps beyond this is a mistake.
const MOST: usize = 1 << 16;

impl Recurrence {
    /// A distribution without curriculum or clamp.
    pub fn new(kind: Kind) -> Recurrence {
        Recurrence { kind, curriculum: 0, max_steps: None }
    }
    /// The depth of a step (they count from 1).
    pub fn draw(&self, seed: u64, step: u64) -> Depth {
        let mut draws = Draws::new(seed, "recurrence", step);
        let ramped = |full: usize| match self.curriculum {
            0 => full,
            steps => {
                let grown = (full as u128 * u128::from(step.min(steps))).div_ceil(u128::from(steps));
                grown as usize
            }
        };
        let (total, backprop) = match self.kind {
            Kind::LognormalPoisson { mean, backprop, sigma } => {
                let s = ramped(backprop);
                let mean = ramped(mean.saturating_sub(backprop)) + s;
                let rate = libm::exp(libm::log(mean as f64) - sigma * sigma / 2.0 + sigma * draws.normal());
                // A rate far beyond any use, from a huge sigma, must not take for ever.
                (draws.poisson(rate.min((16 * MOST) as f64)) + 1, s)
            }
            Kind::Poisson { mean, backprop } => {
                let s = ramped(backprop);
                (draws.poisson((ramped(mean.saturating_sub(backprop)) + s) as f64) + 1, s)
            }
            Kind::Uniform { min, max, backprop } => {
                let span = ramped(max.saturating_sub(min));
                (min as u64 + draws.below(span as u64 + 1), ramped(backprop))
            }
            Kind::Fixed { no_grad, grad } => {
                let (n, k) = (ramped(no_grad), ramped(grad));
                ((n + k) as u64, k)
            }
        };
        let total = usize::try_from(total).unwrap_or(usize::MAX).min(self.max_steps.unwrap_or(usize::MAX));
        Depth { no_grad: total.saturating_sub(backprop), grad: total.min(backprop) }
    }
    /// The most iterations with gradient: the K to compile for.
    pub fn max_grad(&self) -> usize {
        match self.kind {
            Kind::LognormalPoisson { backprop, .. } | Kind::Poisson { backprop, .. } => backprop,
            Kind::Uniform { max, backprop, .. } => backprop.min(max),
            Kind::Fixed { grad, .. } => grad,
        }
    }
    /// A number of iterations that about one draw in a million exceeds, or none: what to compile `max_steps` for.
    pub fn rarely_above(&self) -> usize {
        // 4.9 standard deviations of the logarithm of the rate, and as many of the Poisson number given that rate.
        let poisson = |rate: f64| rate + 4.9 * rate.sqrt() + 6.0;
        let most = match self.kind {
            Kind::LognormalPoisson { mean, backprop, sigma } => {
                poisson(mean.max(backprop) as f64 * libm::exp(4.9 * sigma - sigma * sigma / 2.0)).ceil() as usize
            }
            Kind::Poisson { mean, backprop } => poisson(mean.max(backprop) as f64).ceil() as usize,
            Kind::Uniform { max, .. } => max,
            Kind::Fixed { no_grad, grad } => no_grad + grad,
        };
        most.min(self.max_steps.unwrap_or(usize::MAX))
    }
}

/// The table `[recurrence]` as it is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backprop: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigma: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    curriculum: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_steps: Option<usize>,
}

impl TryFrom<Table> for Recurrence {
    type Error = String;
    fn try_from(table: Table) -> Result<Recurrence, String> {
        let kind = table.kind.as_str();
        let fields: &[&str] = match kind {
            "lognormal_poisson" => &["mean", "backprop", "sigma"],
            "poisson" => &["mean", "backprop"],
            "uniform" => &["min", "max", "backprop"],
            "fixed" => &["n", "k"],
            _ => {
                return Err(format!(
                    "`{kind}` is no kind of recurrence: there are lognormal_poisson, poisson, uniform and fixed"
                ));
            }
        };
        let given = [
            ("mean", table.mean.is_some()),
            ("backprop", table.backprop.is_some()),
            ("sigma", table.sigma.is_some()),
            ("min", table.min.is_some()),
            ("max", table.max.is_some()),
            ("n", table.n.is_some()),
            ("k", table.k.is_some()),
        ];
        if let Some((field, _)) = given.iter().find(|(field, is)| *is && !fields.contains(field)) {
            return Err(format!("recurrence of kind {kind} has {}, not `{field}`", fields.join(", ")));
        }
        let need = |field: &str, value: Option<usize>| match value {
            Some(value) if value <= MOST => Ok(value),
            Some(value) => Err(format!("`{field}` = {value} is more than {MOST} iterations")),
            None => Err(format!("recurrence of kind {kind} needs `{field}`")),
        };
        let kind = match kind {
            "lognormal_poisson" => {
                let sigma = table.sigma.unwrap_or(0.5);
                if !(0.0..=4.0).contains(&sigma) {
                    return Err(format!("`sigma` = {sigma} is not in 0..=4"));
                }
                Kind::LognormalPoisson {
                    mean: need("mean", table.mean)?,
                    backprop: need("backprop", table.backprop)?,
                    sigma,
                }
            }
            "poisson" => Kind::Poisson { mean: need("mean", table.mean)?, backprop: need("backprop", table.backprop)? },
            "uniform" => {
                let (min, max) = (need("min", table.min)?, need("max", table.max)?);
                if min > max {
                    return Err(format!("`min` = {min} is more than `max` = {max}"));
                }
                // Without `backprop` every iteration has a gradient.
                Kind::Uniform { min, max, backprop: need("backprop", table.backprop.or(Some(max)))? }
            }
            _ => Kind::Fixed { no_grad: need("n", table.n.or(Some(0)))?, grad: need("k", table.k)? },
        };
        if let Kind::LognormalPoisson { mean, backprop, .. } | Kind::Poisson { mean, backprop } = kind
            && mean.max(backprop) == 0
        {
            return Err("`mean` is 0".into());
        }
        if table.max_steps == Some(0) {
            return Err("`max_steps` is 0".into());
        }
        Ok(Recurrence { kind, curriculum: table.curriculum.unwrap_or(0), max_steps: table.max_steps })
    }
}

impl From<Recurrence> for Table {
    fn from(recurrence: Recurrence) -> Table {
        let Recurrence { kind, curriculum, max_steps } = recurrence;
        let common = Table { curriculum: (curriculum > 0).then_some(curriculum), max_steps, ..Table::default() };
        match kind {
            Kind::LognormalPoisson { mean, backprop, sigma } => Table {
                kind: "lognormal_poisson".into(),
                mean: Some(mean),
                backprop: Some(backprop),
                sigma: Some(sigma),
                ..common
            },
            Kind::Poisson { mean, backprop } => {
                Table { kind: "poisson".into(), mean: Some(mean), backprop: Some(backprop), ..common }
            }
            Kind::Uniform { min, max, backprop } => {
                Table { kind: "uniform".into(), min: Some(min), max: Some(max), backprop: Some(backprop), ..common }
            }
            Kind::Fixed { no_grad, grad } => Table { kind: "fixed".into(), n: Some(no_grad), k: Some(grad), ..common },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the exact distribution that the reference implementation's author computed (fixture h): moments within five
    /// standard errors, and a chi-square over the bins that expect at least 10.
    #[test]
    fn the_papers_distribution() {
        const DRAWS: u64 = 200_000;
        for name in ["huginn-tiny", "huginn-odd"] {
            let path = format!("{}/../tests/fixtures/{name}/h_sampler.json", env!("CARGO_MANIFEST_DIR"));
            let fixture: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            let number = |path: &str| fixture.pointer(path).unwrap().as_f64().unwrap();
            let mean = number("/mean_recurrence") as usize;
            let backprop = number("/mean_backprop_depth") as usize;
            let sampler = Recurrence::new(Kind::LognormalPoisson { mean, backprop, sigma: number("/sigma") });
            let pmf = fixture["exact_pmf_p_from_0"].as_array().unwrap();
            let mut counts = vec![0u64; pmf.len() + 1];
            let (mut sum, mut squares, mut n, mut k, mut above) = (0.0, 0.0, 0.0, 0.0, 0);
            for step in 1..=DRAWS {
                let depth = sampler.draw(17, step);
                let p = depth.no_grad + depth.grad;
                assert!(p >= 1 && depth.grad == p.min(backprop) && depth.no_grad == p - depth.grad);
                counts[p.min(pmf.len())] += 1;
                (sum, squares) = (sum + p as f64, squares + (p * p) as f64);
                (n, k) = (n + depth.no_grad as f64, k + depth.grad as f64);
                above += usize::from(p > sampler.rarely_above());
            }
            let draws = DRAWS as f64;
            let std = number("/exact/std");
            let (mean_p, error) = (sum / draws, 5.0 * std / draws.sqrt());
            assert!((mean_p - number("/exact/mean")).abs() < error, "{mean_p}");
            assert!((n / draws - number("/analytic/mean_n")).abs() < error, "{n}");
            assert!((k / draws - number("/analytic/mean_k")).abs() < 0.01, "{k}");
            let measured = (squares / draws - mean_p * mean_p).sqrt();
            // The distribution's tail is heavy: the error of its deviation is some four times a normal one's.
            assert!((measured - std).abs() < 4.0 * 5.0 * std / (2.0 * draws).sqrt(), "{measured} {std}");
            let (mut chi, mut bins) = (0.0, 0.0);
            for (p, mass) in pmf.iter().enumerate() {
                let expected = mass.as_f64().unwrap() * draws;
                if expected >= 10.0 {
                    chi += (counts[p] as f64 - expected).powi(2) / expected;
                    bins += 1.0;
                }
            }
            // Mean bins - 1, variance twice that; five deviations.
            assert!(
                bins > 40.0 && chi < bins + 5.0 * f64::sqrt(2.0 * bins),
                "{name}: chi-square {chi} over {bins} bins"
            );
            assert!(above <= 3, "{above} above {}", sampler.rarely_above());
        }
    }

    #[test]
    fn other_kinds() {
        let draws = |r: &Recurrence| (1..=20_000).map(|step| r.draw(3, step)).collect::<Vec<_>>();
        let total = |d: &Depth| d.no_grad + d.grad;
        let poisson = draws(&Recurrence::new(Kind::Poisson { mean: 9, backprop: 4 }));
        let mean = poisson.iter().map(total).sum::<usize>() as f64 / 2e4;
        assert!((mean - 10.0).abs() < 5.0 * 3.0 / 141.0, "{mean}");
        assert!(poisson.iter().all(|d| d.grad == total(d).min(4) && total(d) >= 1));
        let uniform = draws(&Recurrence::new(Kind::Uniform { min: 2, max: 6, backprop: 3 }));
        for p in 2..=6 {
            let count = uniform.iter().filter(|d| total(d) == p).count();
            assert!((count as i64 - 4000).abs() < 5 * 57, "{p}: {count}");
        }
        assert!(uniform.iter().all(|d| (2..=6).contains(&total(d)) && d.grad == total(d).min(3)));
        let fixed = Recurrence::new(Kind::Fixed { no_grad: 5, grad: 2 });
        assert!(draws(&fixed).iter().all(|d| *d == Depth { no_grad: 5, grad: 2 }));
        // The same again, and other seeds give others.
        let kind = Kind::LognormalPoisson { mean: 32, backprop: 8, sigma: 0.5 };
        let sampler = Recurrence::new(kind);
        assert_eq!(sampler.draw(1, 77), sampler.draw(1, 77));
        assert!((1..50).any(|step| sampler.draw(1, step) != sampler.draw(2, step)));
        let clamped = Recurrence { max_steps: Some(20), ..sampler };
        let depths = draws(&clamped);
        assert!(depths.iter().all(|d| total(d) <= 20) && depths.contains(&Depth { no_grad: 12, grad: 8 }));
    }

    #[test]
    fn a_curriculum_ramps_the_mean() {
        let kind = Kind::LognormalPoisson { mean: 32, backprop: 8, sigma: 0.0 };
        let sampler = Recurrence { curriculum: 100, ..Recurrence::new(kind) };
        // At sigma 0 the rate is ramp(24) + ramp(8); the mean of p over seeds is one more.
        let mean =
            |step: u64| (0..4000).map(|seed| sampler.draw(seed, step)).map(|d| d.no_grad + d.grad).sum::<usize>();
        for (step, rate) in [(1, 2.0), (50, 16.0), (99, 32.0), (100, 32.0), (5000, 32.0)] {
            let mean = mean(step) as f64 / 4000.0;
            assert!((mean - rate - 1.0).abs() < 5.0 * f64::sqrt(rate / 4000.0), "step {step}: {mean}");
        }
        assert!((0..100).all(|seed| sampler.draw(seed, 1).grad <= 1 && sampler.draw(seed, 50).grad <= 4));
        let fixed = Recurrence { curriculum: 10, ..Recurrence::new(Kind::Fixed { no_grad: 10, grad: 3 }) };
        assert_eq!(fixed.draw(0, 1), Depth { no_grad: 1, grad: 1 });
        assert_eq!(fixed.draw(0, 5), Depth { no_grad: 5, grad: 2 });
        assert_eq!(fixed.draw(0, 10), Depth { no_grad: 10, grad: 3 });
    }

    #[test]
    fn tables_and_their_mistakes() {
        let parse = |text: &str| toml::from_str::<Recurrence>(text).map_err(|e| e.message().to_string());
        for text in [
            "kind = 'lognormal_poisson'\nmean = 8\nbackprop = 4\ncurriculum = 50",
            "kind = 'poisson'\nmean = 8\nbackprop = 4\nmax_steps = 64",
            "kind = 'uniform'\nmin = 1\nmax = 8",
            "kind = 'fixed'\nn = 4\nk = 2",
        ] {
            let recurrence = parse(text).unwrap();
            assert_eq!(parse(&toml::to_string(&recurrence).unwrap()).unwrap(), recurrence);
        }
        for (text, part) in [
            ("kind = 'geometric'", "lognormal_poisson, poisson, uniform and fixed"),
            ("kind = 'fixed'\nmean = 4", "has n, k, not `mean`"),
            ("kind = 'poisson'\nmean = 4", "needs `backprop`"),
            ("kind = 'poisson'\nmean = 0\nbackprop = 0", "`mean` is 0"),
            ("kind = 'uniform'\nmin = 4\nmax = 2", "more than `max`"),
            ("kind = 'fixed'\nk = 100000", "more than 65536"),
            ("kind = 'lognormal_poisson'\nmean = 4\nbackprop = 1\nsigma = -1.0", "sigma"),
            ("kind = 'fixed'\nk = 1\nmax_steps = 0", "`max_steps` is 0"),
            ("kind = 'fixed'\nsteps = 1", "unknown field `steps`"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
