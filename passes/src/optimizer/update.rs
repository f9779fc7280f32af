//! The function `update`.
use super::rows::{self, scalar_input, view};
use super::{EXP_AVG, EXP_AVG_SQ, GRAD, Options, SUM, Trained};
use rdc_ir::training::OptimizerKind;
use rdc_ir::{Builder, DType, Func, Opcode, ValueId};

/// What all tensors use; `f32[]` but for the truth values.
struct Scalars {
    one: ValueId,
    /// lr / bias1
    rate: ValueId,
    /// 1 - decay
    keep: ValueId,
    beta2: ValueId,
    /// 1 - β1
    blend1: ValueId,
    /// 1 - β2
    blend2: ValueId,
    eps: ValueId,
    /// eps²
    least: ValueId,
    /// 1 / √bias2
    unbias2: ValueId,
    /// `bool[]`: whether this is the first step.
    first: ValueId,
    /// What gradients are multiplied by.
    scale: ValueId,
    /// `bool[]`: whether the norm is finite.
    finite: ValueId,
}

/// Appends elementwise operations.
struct Maths<'b, 'f> {
    b: &'b mut Builder<'f>,
}

impl Maths<'_, '_> {
    fn op(&mut self, opcode: Opcode, operands: &[ValueId]) -> ValueId {
        self.b.map(opcode, operands)
    }
    fn add(&mut self, x: ValueId, y: ValueId) -> ValueId {
        self.op(Opcode::Add, &[x, y])
    }
    fn sub(&mut self, x: ValueId, y: ValueId) -> ValueId {
        self.op(Opcode::Sub, &[x, y])
    }
    fn mul(&mut self, x: ValueId, y: ValueId) -> ValueId {
        self.op(Opcode::Mul, &[x, y])
    }
    fn div(&mut self, x: ValueId, y: ValueId) -> ValueId {
        self.op(Opcode::Div, &[x, y])
    }
    fn select(&mut self, cond: ValueId, x: ValueId, y: ValueId) -> ValueId {
        self.op(Opcode::Select, &[cond, x, y])
    }
    fn float(&mut self, value: f64) -> ValueId {
        self.b.constant(value, DType::F32)
    }
    /// The root of the sum of all squares, `f32[]`.
    fn norm(&mut self, tensors: &[ValueId]) -> ValueId {
        let mut totals = Vec::new();
        for &x in tensors {
            let squares = self.mul(x, x);
            totals.push(rows::total(self.b, squares));
        }
        let total = rows::sum(self.b, &totals);
        let total = self.b.reshape(total, &[]);
        self.op(Opcode::Sqrt, &[total])
    }
    /// m + (1 - β1)(g - m)
    fn first_moment(&mut self, s: &Scalars, m: ValueId, g: ValueId) -> ValueId {
        let step = self.sub(g, m);
        let step = self.mul(step, s.blend1);
        self.add(m, step)
    }
    /// β2 v + (1 - β2) g², of v and g²
    fn second_moment(&mut self, s: &Scalars, v: ValueId, square: ValueId) -> ValueId {
        let (old, new) = (self.mul(v, s.beta2), self.mul(square, s.blend2));
        self.add(old, new)
    }
    /// √v / √bias2
    fn deviation(&mut self, s: &Scalars, v: ValueId) -> ValueId {
        let root = self.op(Opcode::Sqrt, &[v]);
        self.mul(root, s.unbias2)
    }
    /// (m, v, what is subtracted from the parameter) of AdamW.
    fn adamw(&mut self, s: &Scalars, [g, m, v]: [ValueId; 3]) -> [ValueId; 3] {
        let square = self.mul(g, g);
        let (m, v) = (self.first_moment(s, m, g), self.second_moment(s, v, square));
        let deviation = self.deviation(s, v);
        let deviation = self.add(deviation, s.eps);
        let ratio = self.div(m, deviation);
        [m, v, self.mul(ratio, s.rate)]
    }
    /// (m, v, what is subtracted from the parameter) of EllisAdam.
    fn ellis_adam(&mut self, s: &Scalars, [g, m, v]: [ValueId; 3]) -> [ValueId; 3] {
        let square = self.mul(g, g);
        let (m, v) = (self.select(s.first, g, m), self.select(s.first, square, v));
        let (m, v) = (self.first_moment(s, m, g), self.second_moment(s, v, square));
        let v = self.op(Opcode::Max, &[v, s.least]);
        // ρ² is the mean of g²/v.
        let ratio = self.div(square, v);
        let total = rows::total(self.b, ratio);
        let count = self.b.func.ty(v).elements() as f64;
        let count = self.float(count);
        let mean = self.div(total, count);
        let rho = self.op(Opcode::Sqrt, &[mean]);
        let most = self.op(Opcode::Max, &[rho, s.one]);
        let rate = self.div(s.rate, most);
        // √v is positive, where atan2(m, y) is atan(m / y).
        let deviation = self.deviation(s, v);
        let ratio = self.div(m, deviation);
        let angle = self.op(Opcode::Atan, &[ratio]);
        [m, v, self.mul(angle, rate)]
    }
}

/// The function `update`.
pub fn function(trained: &[Trained], options: &Options) -> Func {
    let mut func = Func::new("update");
    let mut b = Builder::new(&mut func);
    let names = ["lr", "decay", "beta1", "beta2", "eps", "clip", "bias1", "bias2", "first", "grad_scale"];
    let [lr, decay, beta1, beta2, eps, clip, bias1, bias2, first, grad_scale] = names.map(|n| scalar_input(&mut b, n));
    let one = b.constant(1.0, DType::F32);
    let prefix = if options.accumulate { SUM } else { GRAD };
    let grads: Vec<ValueId> = trained.iter().map(|param| view(&mut b, prefix, param)).collect();
    let mut f = Maths { b: &mut b };

    let norm = f.norm(&grads);
    let norm = f.mul(norm, grad_scale);
    let tiny = f.float(1e-6);
    let above = f.add(norm, tiny);
    let coefficient = f.div(clip, above);
    let coefficient = f.op(Opcode::Min, &[coefficient, one]);
    let scale = f.mul(grad_scale, coefficient);
    let (zero, infinity) = (f.float(0.0), f.float(f64::INFINITY));
    let s = Scalars {
        one,
        rate: f.div(lr, bias1),
        keep: f.sub(one, decay),
        beta2,
        blend1: f.sub(one, beta1),
        blend2: f.sub(one, beta2),
        eps,
        least: f.mul(eps, eps),
        unbias2: f.op(Opcode::Rsqrt, &[bias2]),
        first: f.op(Opcode::Lt, &[zero, first]),
        scale,
        finite: f.op(Opcode::Lt, &[norm, infinity]),
    };
    f.b.output("grad_norm", norm, false);
    for (param, grad) in trained.iter().zip(grads) {
        let old = ["", EXP_AVG, EXP_AVG_SQ].map(|prefix| view(f.b, prefix, param));
        let grad = f.mul(grad, s.scale);
        let operands = [grad, old[1], old[2]];
        let [m, v, step] = match options.optimizer {
            OptimizerKind::AdamW => f.adamw(&s, operands),
            OptimizerKind::EllisAdam => f.ellis_adam(&s, operands),
        };
        let decayed = if param.decay { f.mul(old[0], s.keep) } else { old[0] };
        let new = [f.sub(decayed, step), m, v];
        for ((prefix, old), new) in ["", EXP_AVG, EXP_AVG_SQ].into_iter().zip(old).zip(new) {
            let value = f.select(s.finite, new, old);
            rows::update(f.b, prefix, param, value);
        }
    }
    func
}
