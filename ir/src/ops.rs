//! The op table: every operation, declared once.
//!
//! Each entry gives the mnemonic, operands (`...` after the last one means any number of them), attributes with their
//! kinds, the function that computes the result types, the floating-point operations it costs, and its documentation.
//! The enum, builder, printer, parser, verifier and cost model read this table.
use crate::float::Float;
use crate::infer;
use crate::module::Op;
use crate::types::{DType, Type};
use serde::{Deserialize, Serialize};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Attr {
    /// An integer.
    Int(i64),
    /// A float.
    Float(Float),
    /// A truth value.
    Bool(bool),
    /// A string.
    Str(String),
    /// A list of integers.
    Ints(Vec<i64>),
    /// An element type.
    DType(DType),
}

impl Attr {
    /// A float.
    pub fn float(value: f64) -> Attr {
        Attr::Float(Float(value))
    }
    /// The list of a shape's sizes.
    pub fn shape(sizes: &[usize]) -> Attr {
        Attr::Ints(sizes.iter().map(|&n| n as i64).collect())
    }
    /// The kind of the value.
    pub fn kind(&self) -> AttrKind {
        match self {
            Attr::Int(_) => AttrKind::Int,
            Attr::Float(_) => AttrKind::Float,
            Attr::Bool(_) => AttrKind::Bool,
            Attr::Str(_) => AttrKind::Str,
            Attr::Ints(_) => AttrKind::Ints,
            Attr::DType(_) => AttrKind::DType,
        }
    }
    /// The integer (0 if it is of another kind; the verifier rejects such an op).
    pub fn as_int(&self) -> i64 {
        if let Attr::Int(v) = self { *v } else { 0 }
    }
    /// The float (0 if it is of another kind).
    pub fn as_float(&self) -> f64 {
        if let Attr::Float(v) = self { v.0 } else { 0.0 }
    }
    /// The truth value (false if it is of another kind).
    pub fn as_bool(&self) -> bool {
        matches!(self, Attr::Bool(true))
    }
    /// The string (empty if it is of another kind).
    pub fn as_str(&self) -> &str {
        if let Attr::Str(v) = self { v } else { "" }
    }
    /// The list (empty if it is of another kind).
    pub fn as_ints(&self) -> &[i64] {
        if let Attr::Ints(v) = self { v } else { &[] }
    }
    /// The element type (f32 if it is of another kind).
    pub fn as_dtype(&self) -> DType {
        if let Attr::DType(v) = self { *v } else { DType::F32 }
    }
}

/// The kind of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrKind {
    /// `3`
    Int,
    /// `1e-6`
    Float,
    /// `true`
    Bool,
    /// `"full"`
    Str,
    /// `[1, 2]`
    Ints,
    /// `f32`
    DType,
}

/// The declaration of an attribute.
#[derive(Clone, Copy, Debug)]
pub struct AttrSpec {
    /// Name.
    pub name: &'static str,
    /// Kind.
    pub kind: AttrKind,
}

/// How result types follow from operand types and attributes.
pub type Infer = fn(&[Type], &[Attr]) -> Result<Vec<Type>, String>;
/// Floating-point operations of one execution, from the op and the types of operands and results.
pub type Flops = fn(&Op, &[&Type], &[&Type]) -> u64;

/// An entry of the op table.
pub struct OpInfo {
    /// The name in IR text.
    pub mnemonic: &'static str,
    /// Names of the operands; with `variadic` the last may occur any number of times.
    pub operands: &'static [&'static str],
    /// How many trailing operands may be left out.
    pub optional: usize,
    /// Whether the last operand repeats.
    pub variadic: bool,
    /// Attributes, in storage order.
    pub attrs: &'static [AttrSpec],
    /// Result types; for `loop`, `param` and `constant` the types are stored, see the verifier.
    pub infer: Infer,
    /// Cost.
    pub flops: Flops,
    /// What it means.
    pub doc: &'static str,
}

macro_rules! attr_kind {
    (int) => {
        AttrKind::Int
    };
    (float) => {
        AttrKind::Float
    };
    (bool) => {
        AttrKind::Bool
    };
    (str) => {
        AttrKind::Str
    };
    (ints) => {
        AttrKind::Ints
    };
    (dtype) => {
        AttrKind::DType
    };
}

macro_rules! ops {
    ($($(#[doc = $doc:literal])* $name:ident = $mnemonic:literal
        ($($operand:ident),*) $(optional $optional:literal)? $(variadic $variadic:literal)?
        {$($attr:ident: $kind:ident),*} => $infer:path, $flops:expr;)*) => {
        /// The operations.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Opcode {
            $($(#[doc = $doc])* $name,)*
        }
        impl Opcode {
            /// Every opcode, in table order.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$name,)*];
            /// Its entry in the op table.
            pub fn info(self) -> &'static OpInfo {
                &TABLE[self as usize]
            }
        }
        static TABLE: &[OpInfo] = &[$(OpInfo {
            mnemonic: $mnemonic,
            operands: &[$(stringify!($operand)),*],
            optional: 0 $(+ $optional)?,
            variadic: false $(|| $variadic)?,
            attrs: &[$(AttrSpec { name: stringify!($attr), kind: attr_kind!($kind) }),*],
            infer: $infer,
            flops: $flops,
            doc: concat!($($doc, "\n"),*),
        },)*];
    };
}

fn free(_: &Op, _: &[&Type], _: &[&Type]) -> u64 {
    0
}
fn per_element(n: u64) -> impl Fn(&[&Type]) -> u64 {
    move |types| types.iter().take(1).map(|t| (t.elements() as u64).saturating_mul(n)).sum()
}

ops! {
    // ---- leaves ----
    /// The parameter with checkpoint name `name`; the result type is the parameter's.
    Param = "param" () {name: str} => infer::stored, free;
    /// A scalar of the stated type: f32, i32 or bool. `value` holds the number (1 for true).
    Constant = "constant" () {value: float, dtype: dtype} => infer::constant, free;
    /// Rotary table `f32[len, dim/2, 2]`: (cos, sin) of `i * base^(-2j/dim)`; angles, cos and sin are computed in f32 always.
    RopeTable = "rope_table" () {len: int, dim: int, base: float} => infer::rope_table, free;
    /// Sinusoid table `f32[len, dim]`: `sin(i w_j)` for j < dim/2, then `cos(i w_j)`; `w_j = base^(-2j/dim)`.
    SinusoidTable = "sinusoid_table" () {len: int, dim: int, base: float} => infer::sinusoid_table, free;

    // ---- elementwise, two operands, broadcasting; f32 or i32 ----
    /// a + b
    Add = "add" (a, b) {} => infer::arith2, |_, _, r| per_element(1)(r);
    /// a - b
    Sub = "sub" (a, b) {} => infer::arith2, |_, _, r| per_element(1)(r);
    /// a * b
    Mul = "mul" (a, b) {} => infer::arith2, |_, _, r| per_element(1)(r);
    /// a / b (f32 only)
    Div = "div" (a, b) {} => infer::float2, |_, _, r| per_element(1)(r);
    /// max(a, b); NaN if either is NaN
    Max = "max" (a, b) {} => infer::arith2, |_, _, r| per_element(1)(r);
    /// min(a, b); NaN if either is NaN
    Min = "min" (a, b) {} => infer::arith2, |_, _, r| per_element(1)(r);
    /// a < b
    Lt = "lt" (a, b) {} => infer::compare, free;
    /// a <= b
    Le = "le" (a, b) {} => infer::compare, free;
    /// a == b
    Eq = "eq" (a, b) {} => infer::compare, free;
    /// a and b (bool)
    And = "and" (a, b) {} => infer::logic2, free;
    /// a or b (bool)
    Or = "or" (a, b) {} => infer::logic2, free;
    /// not a (bool)
    Not = "not" (a) {} => infer::logic1, free;
    /// Where `cond` is true, `a`, else `b`; all three broadcast.
    Select = "select" (cond, a, b) {} => infer::select, free;

    // ---- elementwise, one f32 operand ----
    /// -a
    Neg = "neg" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// |a|
    Abs = "abs" (a) {} => infer::float1, free;
    /// e^a
    Exp = "exp" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// natural logarithm
    Log = "log" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// square root
    Sqrt = "sqrt" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// 1 / sqrt(a)
    Rsqrt = "rsqrt" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// arc tangent
    Atan = "atan" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// hyperbolic tangent
    Tanh = "tanh" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// Gauss error function
    Erf = "erf" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// 1 / (1 + e^-a)
    Sigmoid = "sigmoid" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// max(a, 0)
    Relu = "relu" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// a * sigmoid(a)
    Silu = "silu" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// a * (1 + erf(a / sqrt 2)) / 2
    Gelu = "gelu" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// The tanh approximation: a * (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3))) / 2
    GeluTanh = "gelu_tanh" (a) {} => infer::float1, |_, _, r| per_element(1)(r);
    /// a, as a constant of the derivative: its cotangent is zero.
    StopGradient = "stop_gradient" (a) {} => infer::float1, free;
    /// Converts the element type (f32, bf16, i32, bool); to bf16 rounds to nearest even, float to integer truncates.
    Cast = "cast" (a) {dtype: dtype} => infer::cast, free;

    // ---- shape ----
    /// The same elements in row-major order under another shape.
    Reshape = "reshape" (a) {shape: ints} => infer::reshape, free;
    /// Axis i of the result is axis `perm[i]` of the operand.
    Transpose = "transpose" (a) {perm: ints} => infer::transpose, free;
    /// Elements `start..end` of an axis.
    Slice = "slice" (a) {axis: int, start: int, end: int} => infer::slice, free;
    /// Joins operands along an axis.
    Concat = "concat" (parts) variadic true {axis: int} => infer::concat, free;
    /// Broadcasts to a shape, as elementwise operations do.
    Broadcast = "broadcast" (a) {shape: ints} => infer::broadcast_to, free;

    /// Zeros of that size along an axis, but for the operand, which begins at `start`: what `slice` takes back out.
    Pad = "pad" (a) {axis: int, start: int, size: int} => infer::pad, free;
    /// Entry `i: i32[]` of the leading axis: `T[N, ..], i32[] -> T[..]`; i is clamped to 0..N.
    Index = "index" (stack, i) {} => infer::index, free;
    /// 1 at the id, else 0: `i32[..] -> f32[.., n]`; an id outside 0..n gives zeros.
    OneHot = "one_hot" (ids) {n: int} => infer::one_hot, free;

    // ---- reductions; the reduced axis stays with size 1 if `keep` ----
    /// Sum over an axis.
    ReduceSum = "reduce_sum" (a) {axis: int, keep: bool} => infer::reduce, |_, o, _| per_element(1)(o);
    /// Maximum over an axis.
    ReduceMax = "reduce_max" (a) {axis: int, keep: bool} => infer::reduce, |_, o, _| per_element(1)(o);
    /// Sums over the axes along which `broadcast` from `shape` repeats; the result has that shape.
    SumTo = "sum_to" (a) {shape: ints} => infer::sum_to, |_, o, _| per_element(1)(o);
    /// The sums of `rows` rows each: `f32[.., D] -> f32[N, D]`, row i sums rows `i * rows ..` of the operand, the last what is left.
    SumBlocks = "sum_blocks" (a) {rows: int} => infer::sum_blocks, |_, o, _| per_element(1)(o);
    /// Whether every element is true: `bool[..] -> bool[]`.
    All = "all" (a) {} => infer::all, free;

    // ---- indexing ----
    /// Row `ids[..]` of `table`: `f32[N, D], i32[..] -> f32[.., D]`. An id outside 0..N is an error (the runtime checks ids
    /// on input; compiled code clamps).
    Gather = "gather" (table, ids) {} => infer::gather, free;
    /// `base` with row `ids[i]` increased by row i of `rows`, for all i in order: `f32[N, D], i32[..], f32[.., D] -> f32[N, D]`;
    /// ids as for `gather`. The derivative of `gather` by its table.
    ScatterAdd = "scatter_add" (base, ids, rows) {} => infer::scatter_add, |_, o, _| o[2].elements() as u64;
    /// Absolute positions of a chunk: `i32[B] -> i32[B, len]`, element (b, s) is `pos[b] + s`.
    Positions = "positions" (pos) {len: int} => infer::positions, free;

    // ---- linear algebra ----
    /// `op(a) · op(b)` over the last two axes, where `op` transposes if the flag is set. `b` is rank 2 (leading axes of `a`
    /// are rows) or has the same leading axes as `a`.
    Matmul = "matmul" (a, b) {trans_a: bool, trans_b: bool} => infer::matmul, infer::matmul_flops;

    // ---- normalisation over the last axis ----
    /// `x * (mean(x^2) + eps)^(-1/2) * weight`; weight `f32[D]`.
    RmsNorm = "rms_norm" (x, weight) {eps: float} => infer::rms_norm, |_, _, r| per_element(4)(r);
    /// `(x - mean) / sqrt(var + eps) * weight + bias`; biased variance; weight and bias `f32[D]`.
    LayerNorm = "layer_norm" (x, weight, bias) {eps: float} => infer::layer_norm, |_, _, r| per_element(7)(r);
    /// exp(x - max) / sum over the last axis.
    Softmax = "softmax" (x) {} => infer::float1, |_, _, r| per_element(4)(r);

    // ---- losses ----
    /// For logits x `f32[.., V]` and labels l `i32[..]`: `nll = lse - x[l] + z_loss * lse^2` with `lse = log sum exp x`, and
    /// `correct` = 1 where `x[l]` is the largest, else 0; both `f32[..]`, and both 0 where the label is -100 (ignored). Other
    /// labels outside 0..V are an error (compiled code clamps).
    CrossEntropy = "cross_entropy" (logits, labels) {z_loss: float}
        => infer::cross_entropy, |_, o, _| per_element(4)(o);
    /// The derivative of `cross_entropy`'s nll by its logits, times `dnll: f32[..]`.
    CrossEntropyGrad = "cross_entropy_grad" (logits, labels, dnll) {z_loss: float}
        => infer::cross_entropy_grad, |_, o, _| per_element(6)(o);
    /// `cross_entropy` of the logits `x wᵀ + bias`, which are never held for all tokens at once: `x: f32[.., K]`, `w: f32[V, K]`,
    /// `bias: f32[V]`.
    LinearCrossEntropy = "linear_cross_entropy" (x, w, labels, bias) optional 1 {z_loss: float}
        => infer::linear_cross_entropy, infer::linear_cross_entropy_flops;
    /// The derivatives of `linear_cross_entropy`'s nll by x, w and (if given) bias, with the tokens weighted by `dnll: f32[..]`.
    LinearCrossEntropyGrad = "linear_cross_entropy_grad" (x, w, labels, dnll, bias) optional 1 {z_loss: float}
        => infer::linear_cross_entropy_grad, infer::linear_cross_entropy_grad_flops;

    // ---- attention ----
    /// Rotates pairs of the last axis: `x: f32[B, S, H, D]`, `table: f32[T, D/2, 2]`, `pos: i32[B]`; row s of batch b uses table
    /// row `pos[b] + s`. (a, b) becomes (a c - b s, b c + a s). `layout` is "adjacent" (pairs 2j, 2j+1) or "half" (j, j + D/2).
    Rope = "rope" (x, table, pos) {layout: str} => infer::rope, |_, _, r| per_element(3)(r);
    /// The derivative of `rope` by x, applied to dy: the rotation back.
    RopeGrad = "rope_grad" (dy, table, pos) {layout: str} => infer::rope, |_, _, r| per_element(3)(r);
    /// Softmax attention: `q: f32[B, S, H, D]`, `k, v: f32[B, T, G, D]` with G dividing H (head h uses group h / (H/G)),
    /// `pos: i32[B]`. Query s of batch b sits at position `pos[b] + s`. If `causal`, it sees keys `0..=pos[b]+s`; otherwise all T
    /// (then pos is ignored). Scores are multiplied by `scale`. Result `f32[B, S, H, D]`.
    Attention = "attention" (q, k, v, pos) {causal: bool, scale: float} => infer::attention, infer::attention_flops;
    /// The derivatives `(dq, dk, dv)` of `attention`, for `dout` of the result's type. Scores are computed again.
    AttentionGrad = "attention_grad" (q, k, v, pos, dout) {causal: bool, scale: float}
        => infer::attention_grad, infer::attention_grad_flops;
    /// Writes `x: f32[B, S, H, D]` at positions `pos[b] + s` of slot `slot: i32[]` of `cache: cache f32[slots, B, T, H, D]`.
    /// Positions at or beyond T are dropped. Results: the cache, and a view `f32[B, T, H, D]` of that slot after the write.
    /// The view must not be used after the next `cache_update` of the same cache, nor be carried or yielded.
    CacheUpdate = "cache_update" (cache, x, pos, slot) {} => infer::cache_update, free;
    /// The cache slot of a layer call in a loop, `i32[] -> i32[]`: with c = step * layers + layer,
    /// `full`: c; `modulo`: c mod (arg * layers); `block`: c / arg; `anchor`: c if c < 8 * layers, else 8 * layers + (c - 8 * layers) mod layers;
    /// plus `base`.
    KvSlot = "kv_slot" (step) {policy: str, arg: int, layer: int, layers: int, base: int} => infer::kv_slot, free;

    // ---- weight layout ----
    /// Symmetric per-row int8: `w: f32[N, K] -> (i8[N, K], f32[N])`; scale = max|row| / 127 (1 for a zero row), values w / scale
    /// rounded to nearest even.
    Quantize = "quantize" (w) {} => infer::quantize, free;
    /// Panels for `packed_matmul`: `w: [N, K] -> [ceil(N/nr), ceil(K/kp), nr, kp]`, zero-padded; kp is 2 for bf16, else 1.
    /// Element (p, i, c, j) is `w[col(p, c), i * kp + j]`. With `parts` = P > 1 the N rows are P equal parts, and panel p holds
    /// nr/P columns of each part side by side: `col(p, c) = (c / (nr/P)) * (N/P) + p * (nr/P) + c % (nr/P)`; P must divide N
    /// and nr/P must divide N/P. With P = 1, `col(p, c) = p * nr + c`.
    Pack = "pack" (w) {nr: int, parts: int} => infer::pack, free;
    /// `x · wᵀ` for a packed weight (f32, bf16, or i8 with `scale: f32[N]` in the order of the unpacked rows):
    /// `x: f32[.., K] -> f32[.., n]`, arithmetic in f32; the result's columns are in unpacked order.
    PackedMatmul = "packed_matmul" (x, w, scale) optional 1 {n: int, k: int, parts: int}
        => infer::packed_matmul, infer::packed_matmul_flops;
    /// `gather` from a packed table of n rows and k columns.
    PackedGather = "packed_gather" (w, ids, scale) optional 1 {n: int, k: int, parts: int} => infer::packed_gather, free;

    // ---- control ----
    /// The loop; see the crate documentation. Result types follow from the operands and the region's yields. With `reverse`
    /// the step index runs from `steps - 1` down to 0 and a stacked yield goes to the entry of its step, so that a reverse loop
    /// reads with `index` what a forward loop stacked; `is_last` is about the index (`step == steps - 1`) in both directions, and
    /// `exit` is not allowed.
    Loop = "loop" (steps, init) variadic true {max_steps: int, exit: bool, stacked: int, reverse: bool}
        => infer::stored, free;
}

impl Opcode {
    /// The opcode of a mnemonic.
    pub fn parse(mnemonic: &str) -> Option<Opcode> {
        Opcode::ALL.iter().copied().find(|o| o.info().mnemonic == mnemonic)
    }
    /// Whether each result element depends on the operands' elements at the same (broadcast) place only.
    pub fn is_elementwise(self) -> bool {
        use Opcode::*;
        matches!(
            self,
            Add | Sub
                | Mul
                | Div
                | Max
                | Min
                | Lt
                | Le
                | Eq
                | And
                | Or
                | Not
                | Select
                | Neg
                | Abs
                | Exp
                | Log
                | Sqrt
                | Rsqrt
                | Atan
                | Tanh
                | Erf
                | Sigmoid
                | Relu
                | Silu
                | Gelu
                | GeluTanh
                | StopGradient
                | Cast
        )
    }
}
