//! From hyperparameters to the scalars that the compiled `update` takes at a step.
use rdc_ir::training::OptimizerKind;
use serde::{Deserialize, Serialize};

/// The table `[optimizer]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// Which one.
    pub kind: OptimizerKind,
    /// The full learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment (AdamW); its least value is eps^2 (EllisAdam). By default 1e-8 and 1e-6.
    pub eps: Option<f64>,
    /// Weight decay of the parameters that the text does not exempt.
    pub weight_decay: f64,
    /// The global norm that gradients are scaled down to; `inf` for none.
    pub clip: f64,
}

impl Default for Optimizer {
    fn default() -> Optimizer {
        Optimizer {
            kind: OptimizerKind::default(),
            lr: 1e-3,
            betas: (0.9, 0.95),
            eps: None,
            weight_decay: 0.01,
            clip: 1.0,
        }
    }
}

/// The scalar inputs of `update`, by their names there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// The learning rate of the step.
    pub lr: f32,
    /// A decayed parameter is multiplied by 1 - decay: lr * wd for AdamW, (lr / full lr) * wd for EllisAdam, whose decay is not
    /// scaled by the learning rate but by the schedule only.
    pub decay: f32,
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
    pub beta2: f32,
    /// See [`Optimizer::eps`].
    pub eps: f32,
    /// The global norm that gradients are scaled down to.
    pub clip: f32,
    /// 1 - beta1^t, where t counts updates from 1.
    pub bias1: f32,
    /// 1 - beta2^t.
    pub bias2: f32,
    /// Whether this is the first update: EllisAdam starts its moments from it.
    pub first: bool,
    /// A factor on the gradients, before their norm is taken.
    pub grad_scale: f32,
}

impl Hyper {
    /// The scalar of that name.
    pub fn scalar(&self, name: &str) -> Option<f32> {
        Some(match name {
            "lr" => self.lr,
            "decay" => self.decay,
            "beta1" => self.beta1,
            "beta2" => self.beta2,
            "eps" => self.eps,
            "clip" => self.clip,
            "bias1" => self.bias1,
            "bias2" => self.bias2,
            "first" => f32::from(u8::from(self.first)),
            "grad_scale" => self.grad_scale,
            _ => return None,
        })
    }
}

impl Optimizer {
    /// The scalars of update number `t` (from 1) at a learning rate. Computed in f64, then rounded.
    pub fn hyper(&self, t: u64, lr: f64) -> Hyper {
        let (beta1, beta2) = self.betas;
        let decay = match self.kind {
            OptimizerKind::AdamW => lr * self.weight_decay,
            OptimizerKind::EllisAdam => lr / self.lr * self.weight_decay,
        };
        let bias = |beta: f64| (1.0 - libm::pow(beta, t as f64)) as f32;
        let eps = self.eps.unwrap_or(match self.kind {
            OptimizerKind::AdamW => 1e-8,
            OptimizerKind::EllisAdam => 1e-6,
        });
        Hyper {
            lr: lr as f32,
            decay: decay as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            eps: eps as f32,
            clip: self.clip as f32,
            bias1: bias(beta1),
            bias2: bias(beta2),
            first: t == 1,
            grad_scale: 1.0,
        }
    }
    /// What is wrong with the numbers, if something is.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), String> {
        let unit = |name: &str, x: f64| {
            if (0.0..1.0).contains(&x) { Ok(()) } else { Err(format!("optimizer.{name} = {x} is not in 0..1")) }
        };
        unit("betas[0]", self.betas.0)?;
        unit("betas[1]", self.betas.1)?;
        let positive = |name: &str, x: f64| {
            if x > 0.0 { Ok(()) } else { Err(format!("optimizer.{name} = {x} is not above 0")) }
        };
        positive("lr", self.lr)?;
        positive("clip", self.clip)?;
        self.eps.map_or(Ok(()), |eps| positive("eps", eps))?;
        if self.lr.is_infinite() || self.eps.is_some_and(f64::is_infinite) {
            return Err("optimizer.lr or optimizer.eps is not finite".into());
        }
        if !(0.0..f64::INFINITY).contains(&self.weight_decay) {
            return Err(format!("optimizer.weight_decay = {} is not at least 0", self.weight_decay));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_of_a_step() {
        let adamw = Optimizer { weight_decay: 0.1, ..Optimizer::default() };
        let first = adamw.hyper(1, 5e-4);
        assert_eq!((first.lr, first.decay, first.first, first.eps), (5e-4, 5e-5, true, 1e-8));
        assert_eq!((first.bias1, first.bias2), (0.1, 0.05));
        let third = adamw.hyper(3, 1e-3);
        assert!(!third.first && (third.bias1 - 0.271).abs() < 1e-7 && (third.bias2 - 0.142625).abs() < 1e-7);
        // The fixture's: lr 2.5e-4 of 1e-3, decay 4e-5 scaled by the schedule only.
        let ellis = Optimizer { kind: OptimizerKind::EllisAdam, weight_decay: 4e-5, ..Optimizer::default() };
        let hyper = ellis.hyper(1, 2.5e-4);
        assert_eq!((hyper.decay, hyper.eps, hyper.grad_scale), (1e-5, 1e-6, 1.0));
        assert_eq!((hyper.scalar("first"), hyper.scalar("beta2"), hyper.scalar("x")), (Some(1.0), Some(0.95), None));
        for kind in [OptimizerKind::AdamW, OptimizerKind::EllisAdam] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }

    #[test]
    fn numbers_that_make_no_sense() {
        let check = |text: &str| toml::from_str::<Optimizer>(text).unwrap().check();
        assert_eq!(check("lr = 3e-4\nclip = inf"), Ok(()));
        for (text, part) in [
            ("lr = 0.0", "lr"),
            ("lr = nan", "lr"),
            ("betas = [0.9, 1.0]", "betas[1]"),
            ("clip = 0.0", "clip"),
            ("eps = -1.0", "eps"),
            ("weight_decay = -1.0", "weight_decay"),
            ("lr = inf", "lr"),
        ] {
            assert!(check(text).unwrap_err().contains(part), "{text}");
        }
    }
}
