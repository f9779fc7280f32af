//! A typed builder of MLIR text for one kernel function.
//!
//! Everything is emitted in the dialects `arith`, `scf`, `vector` (broadcasts, shuffles, lanes) and `llvm` (pointers,
//! loads, stores, fma): addresses are `!llvm.ptr` plus byte offsets in `i64`, loop counters are `i64`. A [`Val`] is an
//! SSA value with its [`Ty`]: a scalar, or a vector of rank 1. A vector of one lane *is* the scalar, so code written
//! for any number of lanes also serves as its own tail. Constants are hoisted to the head of the function and
//! deduplicated.
//!
//! Operand types are the caller's business: a mistake yields text that MLIR's verifier rejects, never unsound code.
mod control;
mod square;

use rdc_ir::DType;
use std::collections::HashMap;
use std::fmt::Write;

/// What a value is made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Elem {
    /// Single precision.
    F32,
    /// 64-bit integer: offsets, counters.
    I64,
    /// 32-bit integer.
    I32,
    /// 16-bit integer: the bits of a bf16.
    I16,
    /// Byte.
    I8,
    /// Truth value in a register.
    I1,
    /// Address.
    Ptr,
}

/// The type of a [`Val`]: an element and a number of lanes (1 = scalar).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ty {
    /// Element.
    pub elem: Elem,
    /// Lanes.
    pub lanes: usize,
}

impl Ty {
    /// An address.
    pub const PTR: Ty = Ty { elem: Elem::Ptr, lanes: 1 };
    /// An offset or counter.
    pub const I64: Ty = Ty { elem: Elem::I64, lanes: 1 };

    /// `lanes` elements.
    pub fn new(elem: Elem, lanes: usize) -> Ty {
        Ty { elem, lanes }
    }
    /// `lanes` floats.
    pub fn f32(lanes: usize) -> Ty {
        Ty { elem: Elem::F32, lanes }
    }
    /// The same number of lanes of another element.
    pub fn of(self, elem: Elem) -> Ty {
        Ty { elem, ..self }
    }
    fn is_float(self) -> bool {
        self.elem == Elem::F32
    }
    fn text(self) -> String {
        let elem = match self.elem {
            Elem::F32 => "f32",
            Elem::I64 => "i64",
            Elem::I32 => "i32",
            Elem::I16 => "i16",
            Elem::I8 => "i8",
            Elem::I1 => "i1",
            Elem::Ptr => "!llvm.ptr",
        };
        if self.lanes == 1 { elem.into() } else { format!("vector<{}x{elem}>", self.lanes) }
    }
    fn align(self) -> usize {
        match self.elem {
            Elem::F32 | Elem::I32 => 4,
            Elem::I64 | Elem::Ptr => 8,
            Elem::I16 => 2,
            Elem::I8 | Elem::I1 => 1,
        }
    }
}

/// An SSA value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Val {
    id: u32,
    /// Its type.
    pub ty: Ty,
}

impl Val {
    fn name(self) -> String {
        format!("%{}", self.id)
    }
    /// Lanes of the value.
    pub fn lanes(self) -> usize {
        self.ty.lanes
    }
}

/// Comparison of floats (false if either is NaN, except `Ne`) or signed integers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cmp {
    /// `a < b`
    Lt,
    /// `a <= b`
    Le,
    /// `a == b`
    Eq,
    /// `a != b`; true if either is NaN
    Ne,
    /// `a > b`
    Gt,
    /// `a >= b`
    Ge,
}

/// Builds the text of one kernel function; see the module documentation.
pub struct Emitter {
    name: String,
    head: String,
    body: String,
    consts: HashMap<(Ty, u64), Val>,
    next: u32,
    depth: usize,
    args: Vec<Val>,
    /// Vector lanes of the target.
    pub lanes: usize,
    /// First task of the call (`i64`).
    pub begin: Val,
    /// End of the tasks of the call (`i64`).
    pub end: Val,
    /// The thread's scratch memory.
    pub scratch: Val,
}

impl Emitter {
    /// A function `name` that takes `pointers` addresses by the kernels' calling convention, for `lanes` f32 lanes.
    pub fn new(name: &str, pointers: usize, lanes: usize) -> Emitter {
        let arg = |id, ty| Val { id, ty };
        let mut e = Emitter {
            name: name.into(),
            head: String::new(),
            body: String::new(),
            consts: HashMap::new(),
            next: 4,
            depth: 1,
            args: Vec::new(),
            lanes,
            begin: arg(1, Ty::I64),
            end: arg(2, Ty::I64),
            scratch: arg(3, Ty::PTR),
        };
        let table = arg(0, Ty::PTR);
        for i in 0..pointers {
            let place = e.offset_const(table, 8 * i);
            let pointer = e.load_raw(place, Ty::PTR);
            e.args.push(pointer);
        }
        e
    }
    /// The address passed for pointer argument `index` (function arguments, then non-linear results).
    pub fn arg(&self, index: usize) -> Val {
        self.args[index]
    }
    /// The finished module text.
    pub fn finish(self) -> String {
        format!(
            "module {{\nfunc.func @{}(%0: !llvm.ptr, %1: i64, %2: i64, %3: !llvm.ptr) {{\n{}{}  return\n}}\n}}\n",
            self.name, self.head, self.body
        )
    }

    // ---- plumbing ----
    fn fresh(&mut self, ty: Ty) -> Val {
        let id = self.next;
        self.next += 1;
        Val { id, ty }
    }
    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        for _ in 0..self.depth {
            self.body.push_str("  ");
        }
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(text);
        self.body.push('\n');
    }
    fn def(&mut self, ty: Ty, text: std::fmt::Arguments<'_>) -> Val {
        let v = self.fresh(ty);
        self.line(format_args!("{} = {text}", v.name()));
        v
    }
    fn constant(&mut self, ty: Ty, bits: u64, text: String) -> Val {
        if let Some(&v) = self.consts.get(&(ty, bits)) {
            return v;
        }
        let v = self.fresh(ty);
        let value = if ty.lanes == 1 { text } else { format!("dense<{text}>") };
        let _ = writeln!(self.head, "  {} = arith.constant {value} : {}", v.name(), ty.text());
        self.consts.insert((ty, bits), v);
        v
    }
    fn names(values: &[Val]) -> String {
        values.iter().map(|v| v.name()).collect::<Vec<_>>().join(", ")
    }
    fn types(values: &[Val]) -> String {
        values.iter().map(|v| v.ty.text()).collect::<Vec<_>>().join(", ")
    }

    // ---- constants ----
    /// A float, in every lane.
    pub fn f32(&mut self, value: f32, lanes: usize) -> Val {
        let bits = value.to_bits();
        self.constant(Ty::f32(lanes), bits.into(), format!("0x{bits:08X}"))
    }
    /// An integer of an integer type, in every lane.
    pub fn int(&mut self, value: i64, ty: Ty) -> Val {
        self.constant(ty, value as u64, value.to_string())
    }
    /// An offset or counter.
    pub fn i64(&mut self, value: usize) -> Val {
        self.int(value as i64, Ty::I64)
    }

    // ---- addresses and memory ----
    /// `pointer + bytes`.
    pub fn offset(&mut self, pointer: Val, bytes: Val) -> Val {
        let (p, b) = (pointer.name(), bytes.name());
        self.def(Ty::PTR, format_args!("llvm.getelementptr {p}[{b}] : (!llvm.ptr, i64) -> !llvm.ptr, i8"))
    }
    /// `pointer + bytes`.
    pub fn offset_const(&mut self, pointer: Val, bytes: usize) -> Val {
        if bytes == 0 {
            return pointer;
        }
        let p = pointer.name();
        // A GEP's constant index is 32 bits wide; a larger one must be a value.
        match i32::try_from(bytes) {
            Ok(b) => self.def(Ty::PTR, format_args!("llvm.getelementptr {p}[{b}] : (!llvm.ptr) -> !llvm.ptr, i8")),
            Err(_) => {
                let b = self.i64(bytes);
                self.offset(pointer, b)
            }
        }
    }
    /// `pointer + index * stride` bytes.
    pub fn at(&mut self, pointer: Val, index: Val, stride: usize) -> Val {
        let bytes = self.mul_const(index, stride);
        self.offset(pointer, bytes)
    }
    /// Loads a value as it lies in memory; only element alignment is assumed.
    pub fn load_raw(&mut self, pointer: Val, ty: Ty) -> Val {
        let p = pointer.name();
        self.def(ty, format_args!("llvm.load {p} {{alignment = {} : i64}} : !llvm.ptr -> {}", ty.align(), ty.text()))
    }
    /// Stores a value as it is.
    pub fn store_raw(&mut self, pointer: Val, value: Val) {
        let (v, p, ty) = (value.name(), pointer.name(), value.ty);
        self.line(format_args!("llvm.store {v}, {p} {{alignment = {} : i64}} : {}, !llvm.ptr", ty.align(), ty.text()));
    }
    /// Loads consecutive tensor elements into the type arithmetic uses: f32 for `f32`, `bf16` and `i8`, i32, or i1 for
    /// `bool`.
    pub fn load(&mut self, pointer: Val, dtype: DType, lanes: usize) -> Val {
        match dtype {
            DType::F32 => self.load_raw(pointer, Ty::f32(lanes)),
            DType::I32 => self.load_raw(pointer, Ty::new(Elem::I32, lanes)),
            DType::BF16 => {
                let bits = self.load_raw(pointer, Ty::new(Elem::I16, lanes));
                self.bf16_to_f32(bits)
            }
            DType::I8 => {
                let byte = self.load_raw(pointer, Ty::new(Elem::I8, lanes));
                let wide = self.extsi(byte, Elem::I32);
                self.int_to_float(wide)
            }
            DType::Bool => {
                let byte = self.load_raw(pointer, Ty::new(Elem::I8, lanes));
                let zero = self.int(0, byte.ty);
                self.cmp(Cmp::Ne, byte, zero)
            }
        }
    }
    /// Stores a value of arithmetic type as consecutive tensor elements (the reverse of [`Emitter::load`], `i8` aside).
    pub fn store(&mut self, pointer: Val, dtype: DType, value: Val) {
        let raw = match dtype {
            DType::F32 | DType::I32 => value,
            DType::BF16 => self.f32_to_bf16(value),
            DType::I8 => self.trunci(value, Elem::I8),
            DType::Bool => self.extui(value, Elem::I8),
        };
        self.store_raw(pointer, raw);
    }
    /// Asks for the cache line at `pointer` to be brought into the cache of a level (1, 2 or 3).
    pub fn prefetch(&mut self, pointer: Val, level: usize) {
        let (p, hint) = (pointer.name(), 4 - level.clamp(1, 3));
        self.line(format_args!(
            "\"llvm.intr.prefetch\"({p}) <{{cache = 1 : i32, hint = {hint} : i32, rw = 0 : i32}}> : (!llvm.ptr) -> ()"
        ));
    }

    /// A constant that the optimiser does not know.
    pub fn opaque(&mut self, value: usize) -> Val {
        let known = self.i64(value);
        self.def(Ty::I64, format_args!("llvm.inline_asm \"\", \"=r,0\" {} : (i64) -> i64", known.name()))
    }

    // ---- arithmetic: floats or integers by the operands' type ----
    fn binary(&mut self, float: &str, int: &str, a: Val, b: Val) -> Val {
        let op = if a.ty.is_float() { float } else { int };
        self.def(a.ty, format_args!("arith.{op} {}, {} : {}", a.name(), b.name(), a.ty.text()))
    }
    /// a + b
    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.binary("addf", "addi", a, b)
    }
    /// a - b
    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.binary("subf", "subi", a, b)
    }
    /// a * b
    pub fn mul(&mut self, a: Val, b: Val) -> Val {
        self.binary("mulf", "muli", a, b)
    }
    /// a / b (integers: both non-negative)
    pub fn div(&mut self, a: Val, b: Val) -> Val {
        self.binary("divf", "divui", a, b)
    }
    /// a mod b for non-negative integers
    pub fn rem(&mut self, a: Val, b: Val) -> Val {
        self.binary("remf", "remui", a, b)
    }
    /// max(a, b); NaN if either is NaN
    pub fn max(&mut self, a: Val, b: Val) -> Val {
        self.binary("maximumf", "maxsi", a, b)
    }
    /// min(a, b); NaN if either is NaN
    pub fn min(&mut self, a: Val, b: Val) -> Val {
        self.binary("minimumf", "minsi", a, b)
    }
    /// max of floats in one instruction: `a > b ? a : b`, so b if either is NaN
    pub fn max_fast(&mut self, a: Val, b: Val) -> Val {
        let c = self.cmp(Cmp::Gt, a, b);
        self.select(c, a, b)
    }
    /// min of floats in one instruction: `a < b ? a : b`, so b if either is NaN
    pub fn min_fast(&mut self, a: Val, b: Val) -> Val {
        let c = self.cmp(Cmp::Lt, a, b);
        self.select(c, a, b)
    }
    /// a * b + c with one rounding
    pub fn fma(&mut self, a: Val, b: Val, c: Val) -> Val {
        let (x, y, z, t) = (a.name(), b.name(), c.name(), a.ty.text());
        self.def(a.ty, format_args!("llvm.intr.fma({x}, {y}, {z}) : ({t}, {t}, {t}) -> {t}"))
    }
    /// -a
    pub fn neg(&mut self, a: Val) -> Val {
        self.def(a.ty, format_args!("arith.negf {} : {}", a.name(), a.ty.text()))
    }
    fn intrinsic(&mut self, name: &str, a: Val) -> Val {
        let t = a.ty.text();
        self.def(a.ty, format_args!("llvm.intr.{name}({}) : ({t}) -> {t}", a.name()))
    }
    /// |a|
    pub fn abs(&mut self, a: Val) -> Val {
        self.intrinsic("fabs", a)
    }
    /// square root, correctly rounded
    pub fn sqrt(&mut self, a: Val) -> Val {
        self.intrinsic("sqrt", a)
    }
    /// The nearest integer, ties to even, as a float
    pub fn round(&mut self, a: Val) -> Val {
        self.intrinsic("roundeven", a)
    }
    /// `i64` a * constant
    pub fn mul_const(&mut self, a: Val, b: usize) -> Val {
        if b == 1 {
            return a;
        }
        let b = self.i64(b);
        self.mul(a, b)
    }
    /// `i64` a + constant
    pub fn add_const(&mut self, a: Val, b: usize) -> Val {
        if b == 0 {
            return a;
        }
        let b = self.i64(b);
        self.add(a, b)
    }
    /// Quotient and remainder of a non-negative `i64` by a positive constant
    pub fn div_rem(&mut self, a: Val, b: usize) -> (Val, Val) {
        if b == 1 {
            let zero = self.i64(0);
            return (a, zero);
        }
        let b = self.i64(b);
        (self.div(a, b), self.rem(a, b))
    }
    /// An integer clamped to `0..count`, as `i64`.
    pub fn index(&mut self, a: Val, count: usize) -> Val {
        let a = self.extsi(a, Elem::I64);
        let (zero, last) = (self.i64(0), self.i64(count.saturating_sub(1)));
        let a = self.max(a, zero);
        self.min(a, last)
    }
    /// bitwise and
    pub fn and(&mut self, a: Val, b: Val) -> Val {
        self.binary("", "andi", a, b)
    }
    /// bitwise or
    pub fn or(&mut self, a: Val, b: Val) -> Val {
        self.binary("", "ori", a, b)
    }
    /// bitwise exclusive or
    pub fn xor(&mut self, a: Val, b: Val) -> Val {
        self.binary("", "xori", a, b)
    }
    /// shift left by a constant
    pub fn shl(&mut self, a: Val, bits: i64) -> Val {
        let b = self.int(bits, a.ty);
        self.binary("", "shli", a, b)
    }
    /// logical shift right by a constant
    pub fn shr(&mut self, a: Val, bits: i64) -> Val {
        let b = self.int(bits, a.ty);
        self.binary("", "shrui", a, b)
    }
    /// arithmetic shift right by a constant
    pub fn sar(&mut self, a: Val, bits: i64) -> Val {
        let b = self.int(bits, a.ty);
        self.binary("", "shrsi", a, b)
    }
    /// Compares; the result has element i1.
    pub fn cmp(&mut self, how: Cmp, a: Val, b: Val) -> Val {
        let float = a.ty.is_float();
        let predicate = match (how, float) {
            (Cmp::Lt, true) => "olt",
            (Cmp::Le, true) => "ole",
            (Cmp::Eq, true) => "oeq",
            (Cmp::Ne, true) => "une",
            (Cmp::Gt, true) => "ogt",
            (Cmp::Ge, true) => "oge",
            (Cmp::Lt, false) => "slt",
            (Cmp::Le, false) => "sle",
            (Cmp::Eq, false) => "eq",
            (Cmp::Ne, false) => "ne",
            (Cmp::Gt, false) => "sgt",
            (Cmp::Ge, false) => "sge",
        };
        let op = if float { "cmpf" } else { "cmpi" };
        let text = a.ty.text();
        self.def(a.ty.of(Elem::I1), format_args!("arith.{op} {predicate}, {}, {} : {text}", a.name(), b.name()))
    }
    /// Whether two addresses differ (i1).
    pub fn differs(&mut self, a: Val, b: Val) -> Val {
        let (a, b) = (a.name(), b.name());
        self.def(Ty::new(Elem::I1, 1), format_args!("llvm.icmp \"ne\" {a}, {b} : !llvm.ptr"))
    }
    /// `cond ? a : b`, lane by lane, or by a scalar condition.
    pub fn select(&mut self, cond: Val, a: Val, b: Val) -> Val {
        let text = a.ty.text();
        let cond_ty = if cond.lanes() == 1 { String::new() } else { format!("{}, ", cond.ty.text()) };
        self.def(a.ty, format_args!("arith.select {}, {}, {} : {cond_ty}{text}", cond.name(), a.name(), b.name()))
    }

    // ---- conversions ----
    fn convert(&mut self, op: &str, a: Val, elem: Elem) -> Val {
        if a.ty.elem == elem {
            return a;
        }
        let to = a.ty.of(elem);
        self.def(to, format_args!("arith.{op} {} : {} to {}", a.name(), a.ty.text(), to.text()))
    }
    /// Widens a signed integer.
    pub fn extsi(&mut self, a: Val, elem: Elem) -> Val {
        self.convert("extsi", a, elem)
    }
    /// Widens an unsigned integer.
    pub fn extui(&mut self, a: Val, elem: Elem) -> Val {
        self.convert("extui", a, elem)
    }
    /// Narrows an integer.
    pub fn trunci(&mut self, a: Val, elem: Elem) -> Val {
        self.convert("trunci", a, elem)
    }
    /// Signed integer to float.
    pub fn int_to_float(&mut self, a: Val) -> Val {
        self.convert("sitofp", a, Elem::F32)
    }
    /// Float to `i32`, truncating; outside the range of i32 the result is unspecified, see `math::to_int`.
    pub fn float_to_int(&mut self, a: Val) -> Val {
        self.convert("fptosi", a, Elem::I32)
    }
    /// The same bits as another element of the same size.
    pub fn bitcast(&mut self, a: Val, elem: Elem) -> Val {
        self.convert("bitcast", a, elem)
    }
    /// The floats whose upper halves are these bits.
    pub fn bf16_to_f32(&mut self, bits: Val) -> Val {
        let wide = self.extui(bits, Elem::I32);
        let bits = self.shl(wide, 16);
        self.bitcast(bits, Elem::F32)
    }
    /// Rounds to nearest even; NaN stays NaN.
    pub fn f32_to_bf16(&mut self, a: Val) -> Val {
        let bits = self.bitcast(a, Elem::I32);
        let upper = self.shr(bits, 16);
        let one = self.int(1, bits.ty);
        let odd = self.and(upper, one);
        let half = self.int(0x7fff, bits.ty);
        let bias = self.add(odd, half);
        let sum = self.add(bits, bias);
        let rounded = self.shr(sum, 16);
        let quiet = self.int(0x40, bits.ty);
        let nan = self.or(upper, quiet);
        let is_nan = self.cmp(Cmp::Ne, a, a);
        let out = self.select(is_nan, nan, rounded);
        self.trunci(out, Elem::I16)
    }

    // ---- vectors ----
    /// The scalar in every lane.
    pub fn splat(&mut self, a: Val, lanes: usize) -> Val {
        if a.lanes() == lanes {
            return a;
        }
        let to = Ty { lanes, ..a.ty };
        self.def(to, format_args!("vector.broadcast {} : {} to {}", a.name(), a.ty.text(), to.text()))
    }
    /// Lanes of `a` followed by `b`, picked by index.
    pub fn shuffle(&mut self, a: Val, b: Val, lanes: &[usize]) -> Val {
        let to = Ty { lanes: lanes.len(), ..a.ty };
        let t = a.ty.text();
        if lanes.len() == 1 {
            let (from, lane) = if lanes[0] < a.lanes() { (a, lanes[0]) } else { (b, lanes[0] - a.lanes()) };
            return self.lane(from, lane);
        }
        self.def(to, format_args!("vector.shuffle {}, {} {lanes:?} : {t}, {t}", a.name(), b.name()))
    }
    /// Scalars as the lanes of a vector.
    pub fn from_lanes(&mut self, lanes: &[Val]) -> Val {
        if let [one] = lanes {
            return *one;
        }
        let to = Ty { lanes: lanes.len(), ..lanes[0].ty };
        self.def(to, format_args!("vector.from_elements {} : {}", Self::names(lanes), to.text()))
    }
    /// 0, 1, 2, … as `i32`.
    pub fn iota(&mut self, lanes: usize) -> Val {
        let values: Vec<Val> = (0..lanes as i64).map(|i| self.int(i, Ty::new(Elem::I32, 1))).collect();
        self.from_lanes(&values)
    }
    /// One lane as a scalar.
    pub fn lane(&mut self, a: Val, lane: usize) -> Val {
        if a.lanes() == 1 {
            return a;
        }
        let to = Ty { lanes: 1, ..a.ty };
        self.def(to, format_args!("vector.extract {}[{lane}] : {} from {}", a.name(), to.text(), a.ty.text()))
    }
    /// Folds the lanes (a power of two of them) to a scalar, halves first: the order is fixed by the number of lanes.
    pub fn fold(&mut self, a: Val, op: impl FnMut(&mut Emitter, Val, Val) -> Val) -> Val {
        self.fold_by(a, 1, op)
    }
    /// The sums of lanes that are `lanes` (a power of two) apart, halves first.
    pub fn fold_to(&mut self, a: Val, lanes: usize) -> Val {
        self.fold_by(a, lanes, Emitter::add)
    }
    fn fold_by(&mut self, a: Val, lanes: usize, mut op: impl FnMut(&mut Emitter, Val, Val) -> Val) -> Val {
        let mut v = a;
        while v.lanes() > lanes {
            let half = v.lanes() / 2;
            let low = self.shuffle(v, v, &(0..half).collect::<Vec<_>>());
            let high = self.shuffle(v, v, &(half..2 * half).collect::<Vec<_>>());
            v = op(self, low, high);
        }
        v
    }
    /// The sum of the lanes, halves first.
    pub fn fold_add(&mut self, a: Val) -> Val {
        self.fold(a, Emitter::add)
    }
}
