//! The standard sizes of the benchmark and the work they take, counted as every peer's numbers are: two operations per
//! multiply-add, the causal half of the scores, the adapter unsplit, logits of one position.

/// A size of the standard model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// Its name.
    pub name: &'static str,
    /// Width.
    pub dim: usize,
    /// Heads.
    pub heads: usize,
    /// MLP inner width.
    pub inner: usize,
    /// Layers in prelude, core and coda.
    pub layers: [usize; 3],
    /// Vocabulary.
    pub vocab: usize,
    /// Tokens of a prefill, and of the cache behind which one token is decoded.
    pub seq: usize,
    /// Rows of a training batch.
    pub train_batch: usize,
}

/// tiny, small, medium.
pub const SIZES: [Size; 3] = [
    Size { name: "tiny", dim: 128, heads: 4, inner: 352, layers: [1, 1, 1], vocab: 1024, seq: 128, train_batch: 32 },
    Size { name: "small", dim: 384, heads: 6, inner: 1024, layers: [1, 2, 1], vocab: 4096, seq: 256, train_batch: 4 },
    Size {
        name: "medium",
        dim: 1024,
        heads: 16,
        inner: 2816,
        layers: [2, 4, 2],
        vocab: 32000,
        seq: 512,
        train_batch: 1,
    },
];

/// Bytes that one decoded token must read.
#[derive(Clone, Copy, Debug)]
pub struct DecodeBytes {
    /// Weights of the core, once.
    pub core: f64,
    /// Weights of the core times the iterations.
    pub core_all: f64,
    /// All other weights.
    pub once: f64,
    /// Keys and values.
    pub kv: f64,
}

impl Size {
    /// The size of that name.
    pub fn named(name: &str) -> Option<Size> {
        SIZES.into_iter().find(|s| s.name == name)
    }
    /// What sets the standard model's text to this size.
    pub fn settings(&self) -> Vec<(String, String)> {
        let [prelude, core, coda] = self.layers;
        let sizes = [
            ("vocab", self.vocab),
            ("dim", self.dim),
            ("heads", self.heads),
            ("inner", self.inner),
            ("layers_prelude", prelude),
            ("layers_core", core),
            ("layers_coda", coda),
        ];
        sizes.into_iter().map(|(name, n)| (name.to_string(), n.to_string())).collect()
    }
    fn block(&self) -> f64 {
        (4 * self.dim * self.dim + 3 * self.dim * self.inner) as f64
    }
    /// Blocks run at r iterations.
    fn blocks(&self, r: usize) -> f64 {
        (self.layers[0] + self.layers[2] + r * self.layers[1]) as f64
    }
    /// Operations of a prefill of `seq` tokens, one row.
    pub fn flops_prefill(&self, r: usize) -> f64 {
        let (d, s) = (self.dim as f64, self.seq as f64);
        let per_token = 2.0 * self.block() * self.blocks(r) + r as f64 * 4.0 * d * d;
        s * (per_token + self.blocks(r) * 2.0 * d * (s + 1.0)) + 2.0 * d * self.vocab as f64
    }
    /// Operations of one token that attends to `seq` positions.
    pub fn flops_decode(&self, r: usize) -> f64 {
        let (d, t) = (self.dim as f64, self.seq as f64);
        2.0 * self.block() * self.blocks(r)
            + r as f64 * 4.0 * d * d
            + self.blocks(r) * 4.0 * d * t
            + 2.0 * d * self.vocab as f64
    }
    /// Bytes of one token at `weight` bytes per parameter and f32 keys and values.
    pub fn bytes_decode(&self, r: usize, weight: f64) -> DecodeBytes {
        let d = self.dim as f64;
        let core = (self.layers[1] as f64 * self.block() + 2.0 * d * d) * weight;
        let outside = (self.layers[0] + self.layers[2]) as f64 * self.block() + self.vocab as f64 * d;
        DecodeBytes {
            core,
            core_all: core * r as f64,
            once: outside * weight,
            kv: self.blocks(r) * 2.0 * self.seq as f64 * d * 4.0,
        }
    }
}
