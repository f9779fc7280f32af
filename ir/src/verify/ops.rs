//! The rules of single operations.
use super::Checker;
use crate::entity::OpId;
use crate::module::Op;
use crate::ops::Opcode;
use crate::types::{DType, Type};

impl Checker<'_> {
    /// Checks every operation that can be reached; says whether all are sound.
    pub(super) fn ops(&mut self) -> bool {
        let (func, before) = (self.func, self.errors.len());
        for (_, id) in func.walk() {
            if let Err(message) = self.op_rules(&func.ops[id], id) {
                self.fail_op(id, message);
            }
        }
        self.errors.len() == before
    }
    fn op_rules(&mut self, op: &Op, id: OpId) -> Result<(), String> {
        let info = op.opcode.info();
        let most = info.operands.len();
        let least = most.saturating_sub(if info.variadic { 1 } else { info.optional });
        if op.operands.len() < least || (!info.variadic && op.operands.len() > most) {
            return Err(format!("{} operands, not {}", most, op.operands.len()));
        }
        let kinds_match = op.attrs.iter().zip(info.attrs).all(|(attr, spec)| attr.kind() == spec.kind);
        if op.attrs.len() != info.attrs.len() || !kinds_match {
            return Err("the attributes are not those of the op table".into());
        }
        let regions = usize::from(op.opcode == Opcode::Loop);
        if op.regions.len() != regions {
            return Err(format!("{regions} regions, not {}", op.regions.len()));
        }
        let results: Vec<Type> = op.results.iter().map(|&v| self.func.ty(v).clone()).collect();
        match op.opcode {
            Opcode::Param => return self.param_rules(op, &results),
            Opcode::Loop => return self.loop_rules(op, id, &results),
            _ => {}
        }
        attribute_rules(op)?;
        let operands: Vec<Type> = op.operands.iter().map(|&v| self.func.ty(v).clone()).collect();
        let inferred = (info.infer)(&operands, &op.attrs)?;
        expect_types("the results are", &results, &inferred)
    }
    fn param_rules(&self, op: &Op, results: &[Type]) -> Result<(), String> {
        let name = op.text("name");
        match self.module.param(name) {
            Some(param) => expect_types("the result is", results, std::slice::from_ref(&param.ty)),
            None => Err(format!("there is no parameter {name:?}")),
        }
    }
    fn loop_rules(&mut self, op: &Op, id: OpId, results: &[Type]) -> Result<(), String> {
        let func = self.func;
        let types = |values: &[_]| values.iter().map(|&v| func.ty(v).clone()).collect::<Vec<Type>>();
        let (max_steps, stacked) = (op.int("max_steps"), op.int("stacked"));
        if !(1..=i32::MAX as i64).contains(&max_steps) {
            return Err(format!("max_steps cannot be {max_steps}"));
        }
        if op.flag("reverse") && op.flag("exit") {
            return Err("a loop in reverse cannot end early".into());
        }
        let Some((&steps, init)) = op.operands.split_first() else {
            return Err("there is no trip count".into());
        };
        expect_types("the trip count is", &types(&[steps]), &[Type::scalar(DType::I32)])?;
        let carried = types(init);
        let region = &func.regions[op.regions[0]];
        let mut want = vec![Type::scalar(DType::I32), Type::scalar(DType::Bool)];
        want.extend(carried.iter().cloned());
        // Arguments, yields and results are checked on their own, so that one run tells all mistakes.
        if let Err(message) = expect_types("the region's arguments are", &types(&region.args), &want) {
            self.fail_op(id, message);
        }
        let mut want = carried.clone();
        want.extend(op.flag("exit").then(|| Type::scalar(DType::Bool)));
        let yields = types(&region.yields);
        let split = want.len().min(yields.len());
        expect_types("carried and done yields are", &yields[..split], &want)?;
        if yields.len() as i64 != want.len() as i64 + stacked {
            return Err(format!("{} stacked yields, not {stacked}", yields.len() - split));
        }
        let mut want = carried;
        want.push(Type::scalar(DType::I32));
        for ty in &yields[split..] {
            if ty.cache {
                return Err(format!("a stacked yield cannot be a {ty}"));
            }
            let mut shape = vec![max_steps as usize];
            shape.extend(&ty.shape);
            want.push(Type::new(ty.dtype, shape));
        }
        expect_types("the results are", results, &want)
    }
}

/// Rules on attributes that the inference of types does not need.
fn attribute_rules(op: &Op) -> Result<(), String> {
    match op.opcode {
        Opcode::Constant => {
            let value = op.float("value");
            let ok = match op.attr("dtype").as_dtype() {
                DType::I32 => value.fract() == 0.0 && (i32::MIN as f64..=i32::MAX as f64).contains(&value),
                DType::Bool => value == 0.0 || value == 1.0,
                _ => true,
            };
            if ok { Ok(()) } else { Err("the value is not one of its type".into()) }
        }
        Opcode::RopeTable | Opcode::SinusoidTable => {
            let base = op.float("base");
            if base.is_finite() && base > 0.0 { Ok(()) } else { Err("the base must be positive".into()) }
        }
        Opcode::KvSlot => {
            let (layer, layers, base) = (op.int("layer"), op.int("layers"), op.int("base"));
            let ok = (0..layers).contains(&layer) && (0..=u32::MAX as i64).contains(&base);
            if ok { Ok(()) } else { Err(format!("layer {layer} of {layers} with base {base} has no slot")) }
        }
        _ => Ok(()),
    }
}

fn expect_types(what: &str, have: &[Type], want: &[Type]) -> Result<(), String> {
    if have == want {
        return Ok(());
    }
    let text = |types: &[Type]| types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
    Err(format!("{what} ({}), not ({})", text(want), text(have)))
}
