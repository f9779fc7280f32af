//! Arithmetic at compile time.
use crate::ast::BinaryOp;
use crate::value::Val;
use std::rc::Rc;

/// The longest expression that is kept as the name of a size.
const LONGEST_TEXT: usize = 60;

/// The value of an operator on two compile-time values; `None` if it is not defined for them. Division of whole numbers
/// that leaves a remainder gives a real number.
pub fn binary(op: BinaryOp, a: &Val, b: &Val) -> Option<Result<Val, String>> {
    use BinaryOp::*;
    Some(Ok(match (a, b) {
        (Val::Bool(x), Val::Bool(y)) => Val::Bool(match op {
            And => *x && *y,
            Or => *x || *y,
            Eq => x == y,
            Ne => x != y,
            _ => return None,
        }),
        (Val::Str(x), Val::Str(y)) => Val::Bool(match op {
            Eq => x == y,
            Ne => x != y,
            _ => return None,
        }),
        (Val::Int(x, xt), Val::Int(y, yt)) => {
            let number = match op {
                Add => x.checked_add(*y),
                Sub => x.checked_sub(*y),
                Mul => x.checked_mul(*y),
                Div if *y == 0 => return Some(Err("division by zero".into())),
                Div if x.checked_rem(*y).is_some_and(|rest| rest != 0) => {
                    return Some(Ok(Val::Float(*x as f64 / *y as f64)));
                }
                Div => x.checked_div(*y),
                _ => return compare(op, *x as f64, *y as f64).map(Ok),
            };
            let text = (xt.is_some() || yt.is_some()).then(|| join(op, (x, xt), (y, yt))).flatten();
            match number {
                Some(n) => Val::Int(n, text),
                None => return Some(Err(format!("{x} {} {y} does not fit into 64 bits", op.word()))),
            }
        }
        _ => {
            let (x, y) = (a.number()?, b.number()?);
            match op {
                Add => Val::Float(x + y),
                Sub => Val::Float(x - y),
                Mul => Val::Float(x * y),
                Div if y == 0.0 => return Some(Err("division by zero".into())),
                Div => Val::Float(x / y),
                _ => compare(op, x, y)?,
            }
        }
    }))
}

fn compare(op: BinaryOp, x: f64, y: f64) -> Option<Val> {
    use BinaryOp::*;
    Some(Val::Bool(match op {
        Eq => x == y,
        Ne => x != y,
        Lt => x < y,
        Le => x <= y,
        Gt => x > y,
        Ge => x >= y,
        _ => return None,
    }))
}

type Named<'v> = (&'v i64, &'v Option<Rc<str>>);

fn join(op: BinaryOp, a: Named, b: Named) -> Option<Rc<str>> {
    let tight = matches!(op, BinaryOp::Mul | BinaryOp::Div);
    let show = |(n, text): Named, right: bool| match text {
        Some(t) if t.contains(' ') && (tight || right) => format!("({t})"),
        Some(t) => t.to_string(),
        None => n.to_string(),
    };
    let text = format!("{} {} {}", show(a, false), op.word(), show(b, true));
    (text.len() <= LONGEST_TEXT).then(|| text.into())
}

/// The value of a function of one number at compile time.
pub fn unary(name: &str, x: f64) -> Option<f64> {
    Some(match name {
        "sqrt" => x.sqrt(),
        "rsqrt" => 1.0 / x.sqrt(),
        "exp" => x.exp(),
        "log" => x.ln(),
        "abs" => x.abs(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(n: i64, text: &str) -> Val {
        Val::Int(n, Some(text.into()))
    }
    fn show(op: BinaryOp, a: &Val, b: &Val) -> String {
        match binary(op, a, b) {
            Some(Ok(Val::Int(n, text))) => format!("{} = {n}", text.as_deref().unwrap_or("")),
            Some(Ok(val)) => val.show(),
            Some(Err(message)) => message,
            None => "undefined".into(),
        }
    }

    #[test]
    fn sizes_keep_their_expressions() {
        let dim = named(8, "dim");
        let sum = binary(BinaryOp::Add, &dim, &Val::int(1)).and_then(Result::ok).unwrap_or(Val::Error);
        assert_eq!(show(BinaryOp::Mul, &Val::int(3), &dim), "3 * dim = 24");
        assert_eq!(show(BinaryOp::Mul, &Val::int(3), &sum), "3 * (dim + 1) = 27");
        assert_eq!(show(BinaryOp::Div, &dim, &Val::int(2)), "dim / 2 = 4");
    }

    #[test]
    fn arithmetic_never_panics() {
        let least = Val::int(i64::MIN);
        assert_eq!(show(BinaryOp::Div, &Val::int(7), &Val::int(2)), "3.5");
        assert_eq!(show(BinaryOp::Div, &Val::int(7), &Val::int(0)), "division by zero");
        assert!(show(BinaryOp::Mul, &least, &Val::int(3)).contains("does not fit"));
        assert_eq!(show(BinaryOp::And, &Val::int(1), &Val::Bool(true)), "undefined");
        assert_eq!(show(BinaryOp::Lt, &Val::int(1), &Val::Float(1.5)), "true");
        assert!(show(BinaryOp::Div, &least, &Val::int(-1)).contains("does not fit"));
    }
}
