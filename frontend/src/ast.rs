//! The syntax tree. The parser accepts every statement in every block; where a statement may stand is checked later, so
//! that a misplaced one is one clear error.
use crate::diagnostic::Span;

/// A name and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Name {
    /// The name.
    pub text: String,
    /// Its place.
    pub span: Span,
}

/// A whole text.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The name after `model`.
    pub name: Name,
    /// What is between its braces.
    pub items: Block,
}

/// Statements between braces.
pub type Block = Vec<Stmt>;

/// A statement or declaration.
#[derive(Clone, Debug, PartialEq)]
pub struct Stmt {
    /// What it says.
    pub kind: StmtKind,
    /// Its place, from its keyword on.
    pub span: Span,
}

/// The kinds of named compile-time values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingKind {
    /// A whole number of at least 1.
    Size,
    /// A whole number of at least 0.
    Count,
    /// A real number.
    Const,
    /// A truth value.
    Flag,
    /// A string.
    Str,
}

impl SettingKind {
    /// The keyword.
    pub fn word(self) -> &'static str {
        match self {
            SettingKind::Size => "size",
            SettingKind::Count => "count",
            SettingKind::Const => "const",
            SettingKind::Flag => "flag",
            SettingKind::Str => "string",
        }
    }
}

/// The three parts of a recurrent-depth model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SectionKind {
    /// Runs once, before the loop.
    Prelude,
    /// One iteration of the loop.
    Core,
    /// Runs once, after the loop.
    Coda,
    /// Runs once in training, after the coda.
    Loss,
}

impl SectionKind {
    /// The keyword.
    pub fn word(self) -> &'static str {
        match self {
            SectionKind::Prelude => "prelude",
            SectionKind::Core => "core",
            SectionKind::Coda => "coda",
            SectionKind::Loss => "loss",
        }
    }
}

/// What a statement says.
#[derive(Clone, Debug, PartialEq)]
pub enum StmtKind {
    /// `size dim = 64 from "n_embd" | "hidden_size"`
    Setting {
        /// Which keyword.
        kind: SettingKind,
        /// Its name.
        name: Name,
        /// The default.
        value: Expr,
        /// Fields of config.json, the first present one counts.
        fields: Vec<Name>,
    },
    /// `weight w: [n, k] = trunc_normal(std) no_decay at "w.weight"`
    Weight {
        /// Its name in the text.
        name: Name,
        /// Its shape.
        shape: Vec<Expr>,
        /// How it is drawn.
        init: Expr,
        /// Whether weight decay applies.
        decay: bool,
        /// Its name in the checkpoint, below the prefix; the text's name if absent.
        at: Option<Name>,
    },
    /// `tie head = wte at "lm_head.weight"`
    Tie {
        /// The new name.
        name: Name,
        /// The weight.
        target: Name,
        /// The checkpoint name that stands for the same tensor.
        at: Option<Name>,
    },
    /// `part norm: Norm<dim> at "norm"`, `stack core: Block[layers] at "core"`
    Part {
        /// Its name.
        name: Name,
        /// The layer it is an instance of.
        layer: Name,
        /// Values of the layer's compile-time parameters.
        args: Vec<Expr>,
        /// How many, for a stack.
        count: Option<Expr>,
        /// Prefix of its weights in the checkpoint; the text's name if absent.
        at: Option<Name>,
    },
    /// `state initial_state: [B, S, dim] = normal(1)`
    State {
        /// Its name: that of the function argument.
        name: Name,
        /// Its type.
        ty: TypeExpr,
        /// How it is drawn.
        init: Expr,
    },
    /// `ignore "freqs_cis"`
    Ignore(Vec<Name>),
    /// `readout last, weighted`
    Readout(Vec<Name>),
    /// `cache modulo(4)`
    Cache {
        /// The policy.
        policy: Name,
        /// Its number.
        arg: Option<Expr>,
    },
    /// `require heads <= 64 "message"`, decided at compile time.
    Require {
        /// What must hold.
        cond: Expr,
        /// What to say if it does not.
        message: Name,
    },
    /// A layer.
    Layer(Layer),
    /// A prelude, core or coda.
    Section(Section),
    /// A loss.
    Loss(Loss),
    /// `let a, b = f(x)`
    Let {
        /// The names.
        names: Vec<Name>,
        /// One value per name, or one call that yields as many.
        values: Vec<Expr>,
    },
    /// `return x`
    Return(Vec<Expr>),
    /// `collect step_logits = x`
    Collect {
        /// The name of the stacked value.
        name: Name,
        /// This iteration's entry.
        value: Expr,
    },
    /// `exit when all(done)`
    Exit(Expr),
    /// `if flag { … } else { … }`, decided at compile time; opens no scope.
    If {
        /// The condition.
        cond: Expr,
        /// If it holds.
        then: Block,
        /// If it does not.
        other: Block,
    },
    /// `match string { "a" => { … } else => { … } }`, decided at compile time; opens no scope.
    Match {
        /// The value.
        subject: Expr,
        /// The arms.
        arms: Vec<Arm<Block>>,
    },
}

/// An arm of a `match`.
#[derive(Clone, Debug, PartialEq)]
pub struct Arm<T> {
    /// The strings; none for `else`.
    pub patterns: Vec<Name>,
    /// What it gives.
    pub body: T,
}

/// A layer: a function with weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Its name.
    pub name: Name,
    /// Compile-time parameters.
    pub statics: Vec<Name>,
    /// Parameters.
    pub params: Vec<(Name, TypeExpr)>,
    /// Types of what it returns.
    pub results: Vec<TypeExpr>,
    /// Body.
    pub body: Block,
}

/// What training makes small: `loss next_token (logits, labels) for last -> loss, correct { … }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Its name.
    pub name: Name,
    /// The read-out whose values it takes; the default one if absent.
    pub readout: Option<Name>,
    /// Parameters, results and body.
    pub section: Section,
}

/// A prelude, core, coda, or the body of a loss.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Which.
    pub kind: SectionKind,
    /// The read-outs it is for; none means those that have no section of their own.
    pub readouts: Vec<Name>,
    /// Parameters.
    pub params: Vec<SectionParam>,
    /// Names of the variables handed on at the end of the body.
    pub results: Vec<Name>,
    /// For a core: how often it runs.
    pub trips: Option<Trips>,
    /// Body.
    pub body: Block,
    /// From the keyword to the results.
    pub head: Span,
}

/// A parameter of a section.
#[derive(Clone, Debug, PartialEq)]
pub struct SectionParam {
    /// Its name.
    pub name: Name,
    /// Its type, if stated.
    pub ty: Option<TypeExpr>,
    /// For a carried value: the one before the first iteration.
    pub init: Option<Expr>,
}

/// `loop default 32 max 64`
#[derive(Clone, Debug, PartialEq)]
pub struct Trips {
    /// The default number of steps.
    pub default: Expr,
    /// The largest number of steps that is planned for; the default if absent.
    pub max: Option<Expr>,
}

/// `i32[B, S]`; the element type is f32 if not stated.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeExpr {
    /// Element type: `f32`, `i32`, `bool`.
    pub dtype: Option<Name>,
    /// Sizes.
    pub shape: Vec<Expr>,
    /// Its place.
    pub span: Span,
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Its place.
    pub span: Span,
}

/// Operators of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BinaryOp {
    Or,
    And,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Add,
    Sub,
    Mul,
    Div,
}

impl BinaryOp {
    /// As it is written.
    pub fn word(self) -> &'static str {
        use BinaryOp::*;
        match self {
            Or => "or",
            And => "and",
            Eq => "==",
            Ne => "!=",
            Lt => "<",
            Le => "<=",
            Gt => ">",
            Ge => ">=",
            Add => "+",
            Sub => "-",
            Mul => "*",
            Div => "/",
        }
    }
    /// How tightly it binds.
    pub fn level(self) -> u8 {
        use BinaryOp::*;
        match self {
            Or => 1,
            And => 2,
            Eq | Ne | Lt | Le | Gt | Ge => 4,
            Add | Sub => 5,
            Mul | Div => 6,
        }
    }
}

/// What an expression is.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// A whole number.
    Int(i64),
    /// A real number.
    Float(f64),
    /// A string.
    Str(String),
    /// `true`, `false`
    Bool(bool),
    /// A name.
    Name(String),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `-a`
    Neg(Box<Expr>),
    /// `not a`
    Not(Box<Expr>),
    /// `a + b`
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `f(x, eps = 1)`
    Call(Name, Vec<Arg>),
    /// `w[0]`: an entry of the first axis.
    Index(Box<Expr>, Box<Expr>),
    /// `if flag then a else b`, decided at compile time.
    If(Box<Expr>, Box<Expr>, Box<Expr>),
    /// `match string { "a" => x, else => y }`, decided at compile time.
    Match(Box<Expr>, Vec<Arm<Expr>>),
    /// Text that the parser could not read; already reported.
    Bad,
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    /// The parameter, if stated.
    pub name: Option<Name>,
    /// The value.
    pub value: Expr,
}
