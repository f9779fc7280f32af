//! Any single operation, for what no other family takes: other ranks, axes and broadcasts.
//!
//! Algorithm: plain loops over the result, one element at a time, by the op table's definition; operations over the
//! last axis go to [`RowProgram`]. Tiling: none. Bound: none worth naming; the passes keep such operations out of hot
//! paths.
use super::generic_view::{View, fold, nest, with};
use super::rows;
use crate::emit::{Cmp, Elem, Emitter, Error, Ty, Val, elementwise, math};
use rdc_ir::program::Kernel;
use rdc_ir::program::body::Generic;
use rdc_ir::{DType, Op, Opcode, Type, ValueDef, ValueId};
use rdc_passes::tile::Cpu;

/// Bytes of scratch per thread.
pub fn scratch(kernel: &Kernel, body: &Generic) -> usize {
    let op = &kernel.func.ops[body.op];
    match (&body.rows, op.opcode) {
        (Some(row_operations), _) => rows::program(kernel, row_operations).scratch(),
        (None, Opcode::Attention) => kernel.func.ty(op.operands[1]).shape[1] * 4,
        _ => 0,
    }
}

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, body: &Generic) -> Result<String, Error> {
    if let Some(row_operations) = &body.rows {
        return rows::emit(cpu, kernel, row_operations);
    }
    let anchor = Anchor { kernel, op: &kernel.func.ops[body.op], first_result: kernel.func.args.len() };
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    e.tasks(|e, _| anchor.emit(e));
    Ok(e.finish())
}

/// The operation of a kernel.
struct Anchor<'k> {
    kernel: &'k Kernel,
    op: &'k Op,
    first_result: usize,
}

impl<'k> Anchor<'k> {
    fn ty(&self, value: ValueId) -> &'k Type {
        self.kernel.func.ty(value)
    }

    fn view(&self, e: &Emitter, value: ValueId) -> View {
        let func = &self.kernel.func;
        let base = match func.values[value].def {
            ValueDef::Arg(_, index) => Ok(e.arg(index)),
            ValueDef::Result(..) => match self.op.results.iter().position(|&result| result == value) {
                Some(index) => Ok(e.arg(self.first_result + index)),
                None => Err(func.defined_by(value, Opcode::Constant).map_or(0.0, |constant| constant.float("value"))),
            },
        };
        View::new(base, self.ty(value))
    }

    fn emit(&self, e: &mut Emitter) {
        let op = self.op;
        let operands: Vec<View> = op.operands.iter().map(|&v| self.view(e, v)).collect();
        if op.opcode == Opcode::CacheUpdate {
            return self.cache_update(e, &operands);
        }
        let out = self.view(e, op.results[0]);
        let shape = out.shape.clone();
        let from = operands.first().map_or(DType::F32, |v| v.dtype);
        match op.opcode {
            Opcode::Constant => {
                let value = elementwise::constant(e, op.float("value"), out.dtype, 1);
                out.store(e, &[], value);
            }
            Opcode::Broadcast => nest(e, &shape, &mut |e, index| {
                let value = operands[0].broadcast(e, index);
                out.store(e, index, value);
            }),
            Opcode::Reshape => e.repeat(shape.iter().product(), |e, i| {
                let flat = |v: &View| View { base: v.base, dtype: v.dtype, shape: vec![], strides: vec![1] };
                let value = flat(&operands[0]).load(e, &[i]);
                flat(&out).store(e, &[i], value);
            }),
            Opcode::Transpose => nest(e, &shape, &mut |e, index| {
                let mut own = index.to_vec();
                for (i, &axis) in index.iter().zip(op.ints("perm")) {
                    own[axis as usize] = *i;
                }
                let value = operands[0].load(e, &own);
                out.store(e, index, value);
            }),
            Opcode::Slice => nest(e, &shape, &mut |e, index| {
                let axis = op.size("axis");
                let shifted = e.add_const(index[axis], op.size("start"));
                let value = operands[0].load(e, &with(index, axis, shifted));
                out.store(e, index, value);
            }),
            Opcode::Concat => {
                let axis = op.size("axis");
                let mut start = 0;
                for part in &operands {
                    nest(e, &part.shape, &mut |e, index| {
                        let value = part.load(e, index);
                        let shifted = e.add_const(index[axis], start);
                        out.store(e, &with(index, axis, shifted), value);
                    });
                    start += part.shape[axis];
                }
            }
            Opcode::Index => nest(e, &shape, &mut |e, index| {
                let entry = operands[1].load(e, &[]);
                let entry = e.index(entry, operands[0].shape[0]);
                let value = operands[0].load(e, &[&[entry], index].concat());
                out.store(e, index, value);
            }),
            Opcode::Pad => self.pad(e, &operands[0], &out),
            Opcode::OneHot => nest(e, &shape, &mut |e, index| {
                let (ids, class) = (&index[..index.len() - 1], index[index.len() - 1]);
                let id = operands[0].load(e, ids);
                let class = e.trunci(class, Elem::I32);
                let (one, zero, hit) = (e.f32(1.0, 1), e.f32(0.0, 1), e.cmp(Cmp::Eq, id, class));
                let value = e.select(hit, one, zero);
                out.store(e, index, value);
            }),
            Opcode::SumTo => self.sum_to(e, &operands[0], &out),
            Opcode::SumBlocks => self.sum_blocks(e, &operands[0], &out),
            Opcode::ScatterAdd => self.scatter_add(e, &operands, &out),
            Opcode::ReduceSum | Opcode::ReduceMax => self.reduce(e, &operands[0], &out),
            Opcode::All => {
                let all = e.int(1, Ty::new(Elem::I1, 1));
                let flat = View { strides: vec![1], ..View::new(operands[0].base, &Type::scalar(DType::Bool)) };
                let all = fold(e, operands[0].shape.iter().product(), all, |e, i, all| {
                    let value = flat.load(e, &[i]);
                    e.and(all, value)
                });
                out.store(e, &[], all);
            }
            Opcode::Gather => nest(e, &shape, &mut |e, index| {
                let (ids, column) = (&index[..index.len() - 1], index[index.len() - 1]);
                let id = operands[1].load(e, ids);
                let id = e.index(id, operands[0].shape[0]);
                let value = operands[0].load(e, &[id, column]);
                out.store(e, index, value);
            }),
            Opcode::Positions => nest(e, &shape, &mut |e, index| {
                let first = operands[0].load(e, &index[..1]);
                let step = e.trunci(index[1], Elem::I32);
                let value = e.add(first, step);
                out.store(e, index, value);
            }),
            Opcode::Matmul => self.matmul(e, &operands, &out),
            Opcode::PackedMatmul => self.packed_matmul(e, &operands, &out),
            Opcode::Rope | Opcode::RopeGrad => self.rope(e, &operands, &out),
            Opcode::Attention => self.attention(e, &operands, &out),
            Opcode::KvSlot => {
                let value = self.kv_slot(e, &operands[0]);
                out.store(e, &[], value);
            }
            Opcode::Quantize => {
                let scales = self.view(e, op.results[1]);
                self.quantize(e, &operands[0], &out, &scales);
            }
            Opcode::Pack => self.pack(e, &operands[0], &out),
            // Elementwise operations; `check` and `row_program` have dealt with the rest.
            _ => nest(e, &shape, &mut |e, index| {
                let values: Vec<Val> = operands.iter().map(|v| v.broadcast(e, index)).collect();
                if let Some(value) = elementwise::apply(e, op.opcode, (from, out.dtype), &values) {
                    out.store(e, index, value);
                }
            }),
        }
    }

    fn pad(&self, e: &mut Emitter, x: &View, out: &View) {
        let (axis, start) = (self.op.size("axis"), self.op.size("start"));
        let zero = e.f32(0.0, 1);
        nest(e, &out.shape, &mut |e, index| out.store(e, index, zero));
        nest(e, &x.shape, &mut |e, index| {
            let value = x.load(e, index);
            let shifted = e.add_const(index[axis], start);
            out.store(e, &with(index, axis, shifted), value);
        });
    }

    fn sum_to(&self, e: &mut Emitter, x: &View, out: &View) {
        let zero = e.f32(0.0, 1);
        nest(e, &out.shape, &mut |e, index| out.store(e, index, zero));
        nest(e, &x.shape, &mut |e, index| {
            let (value, sum) = (x.load(e, index), out.broadcast(e, index));
            let sum = e.add(sum, value);
            let place = out.own(e, index);
            out.store(e, &place, sum);
        });
    }

    fn sum_blocks(&self, e: &mut Emitter, x: &View, out: &View) {
        let (zero, rows) = (e.f32(0.0, 1), self.op.size("rows"));
        nest(e, &out.shape, &mut |e, index| out.store(e, index, zero));
        nest(e, &x.shape, &mut |e, index| {
            let (axes, column) = (&x.shape[..index.len() - 1], index[index.len() - 1]);
            let mut row = e.i64(0);
            for (&size, &at) in axes.iter().zip(index) {
                row = e.mul_const(row, size);
                row = e.add(row, at);
            }
            let block = e.div_rem(row, rows).0;
            let (value, sum) = (x.load(e, index), out.load(e, &[block, column]));
            let sum = e.add(sum, value);
            out.store(e, &[block, column], sum);
        });
    }

    fn scatter_add(&self, e: &mut Emitter, operands: &[View], out: &View) {
        let [base, ids, rows] = operands else { return };
        nest(e, &out.shape, &mut |e, index| {
            let value = base.load(e, index);
            out.store(e, index, value);
        });
        nest(e, &rows.shape, &mut |e, index| {
            let (at, column) = (&index[..index.len() - 1], index[index.len() - 1]);
            let id = ids.load(e, at);
            let id = e.index(id, out.shape[0]);
            let (value, sum) = (rows.load(e, index), out.load(e, &[id, column]));
            let sum = e.add(sum, value);
            out.store(e, &[id, column], sum);
        });
    }

    fn reduce(&self, e: &mut Emitter, x: &View, out: &View) {
        let (axis, keep, max) = (self.op.size("axis"), self.op.flag("keep"), self.op.opcode == Opcode::ReduceMax);
        nest(e, &out.shape, &mut |e, index| {
            let start = e.f32(if max { f32::NEG_INFINITY } else { 0.0 }, 1);
            let value = fold(e, x.shape[axis], start, |e, i, sum| {
                let mut own = index.to_vec();
                if keep {
                    own[axis] = i;
                } else {
                    own.insert(axis, i);
                }
                let value = x.load(e, &own);
                if max { e.max(sum, value) } else { e.add(sum, value) }
            });
            out.store(e, index, value);
        });
    }

    fn matmul(&self, e: &mut Emitter, operands: &[View], out: &View) {
        let (a, b) = (&operands[0], &operands[1]);
        let (trans_a, trans_b) = (self.op.flag("trans_a"), self.op.flag("trans_b"));
        let rank = out.shape.len();
        let inner = a.shape[if trans_a { rank - 2 } else { rank - 1 }];
        nest(e, &out.shape, &mut |e, index| {
            let (batch, row, column) = (&index[..rank - 2], index[rank - 2], index[rank - 1]);
            let start = e.f32(0.0, 1);
            let sum = fold(e, inner, start, |e, k, sum| {
                let of = |batch: &[Val], x: Val, y: Val, flip: bool| {
                    let pair = if flip { [y, x] } else { [x, y] };
                    [batch, &pair[..]].concat()
                };
                let left = a.load(e, &of(batch, row, k, trans_a));
                let right = b.load(e, &of(if b.shape.len() == 2 { &[] } else { batch }, k, column, trans_b));
                e.fma(left, right, sum)
            });
            out.store(e, index, sum);
        });
    }

    fn packed_matmul(&self, e: &mut Emitter, operands: &[View], out: &View) {
        let (x, w) = (&operands[0], &operands[1]);
        let (n, k, parts) = (self.op.size("n"), self.op.size("k"), self.op.size("parts").max(1));
        let (nr, kp) = (w.shape[2], w.shape[3]);
        nest(e, &out.shape, &mut |e, index| {
            let (row, column) = (&index[..index.len() - 1], index[index.len() - 1]);
            let (part, within) = e.div_rem(column, n / parts);
            let (panel, lane) = e.div_rem(within, nr / parts);
            let first = e.mul_const(part, nr / parts);
            let lane = e.add(first, lane);
            let start = e.f32(0.0, 1);
            let mut sum = fold(e, k, start, |e, i, sum| {
                let (pair, j) = e.div_rem(i, kp);
                let weight = w.load(e, &[panel, pair, lane, j]);
                let value = x.load(e, &[row, &[i]].concat());
                e.fma(value, weight, sum)
            });
            if let Some(scale) = operands.get(2) {
                let scale = scale.load(e, &[column]);
                sum = e.mul(sum, scale);
            }
            out.store(e, index, sum);
        });
    }

    fn rope(&self, e: &mut Emitter, operands: &[View], out: &View) {
        let (x, table, pos) = (&operands[0], &operands[1], &operands[2]);
        let adjacent = self.op.text("layout") == "adjacent";
        let half = out.shape[3] / 2;
        nest(e, &[&out.shape[..3], &[half]].concat(), &mut |e, index| {
            let &[batch, step, head, j] = index else { return };
            let first = pos.load(e, &[batch]);
            let first = e.extsi(first, Elem::I64);
            let row = e.add(first, step);
            let row = e.index(row, table.shape[0]);
            let (zero, one) = (e.i64(0), e.i64(1));
            let (cos, sin) = (table.load(e, &[row, j, zero]), table.load(e, &[row, j, one]));
            let (at_a, at_b) = if adjacent {
                let even = e.mul_const(j, 2);
                (even, e.add_const(even, 1))
            } else {
                (j, e.add_const(j, half))
            };
            let (at_a, at_b) = ([batch, step, head, at_a], [batch, step, head, at_b]);
            let (a, b) = (x.load(e, &at_a), x.load(e, &at_b));
            let minus = e.neg(sin);
            let (sin, minus) = if self.op.opcode == Opcode::RopeGrad { (minus, sin) } else { (sin, minus) };
            let (ac, bc) = (e.mul(a, cos), e.mul(b, cos));
            let (first, second) = (e.fma(b, minus, ac), e.fma(a, sin, bc));
            out.store(e, &at_a, first);
            out.store(e, &at_b, second);
        });
    }

    fn attention(&self, e: &mut Emitter, operands: &[View], out: &View) {
        let [q, k, v, pos] = operands else { return };
        let (context, dim) = (k.shape[1], out.shape[3]);
        let per_group = out.shape[2] / k.shape[2];
        let weights = View::new(Ok(e.scratch), &Type::f32([context]));
        let scale = e.f32(self.op.float("scale") as f32, 1);
        nest(e, &out.shape[..3], &mut |e, index| {
            let &[batch, step, head] = index else { return };
            let group = e.div_rem(head, per_group).0;
            let all = e.i64(context);
            let seen = if self.op.flag("causal") {
                let first = pos.load(e, &[batch]);
                let first = e.extsi(first, Elem::I64);
                let seen = e.add(first, step);
                let seen = e.add_const(seen, 1);
                e.min(seen, all)
            } else {
                all
            };
            let (zero, minus_inf, none) = (e.i64(0), e.f32(f32::NEG_INFINITY, 1), e.f32(0.0, 1));
            let max = e.for_range(zero, seen, 1, &[minus_inf], |e, t, carried| {
                let dot = fold(e, dim, none, |e, d, sum| {
                    let (x, y) = (q.load(e, &[batch, step, head, d]), k.load(e, &[batch, t, group, d]));
                    e.fma(x, y, sum)
                });
                let score = e.mul(dot, scale);
                weights.store(e, &[t], score);
                vec![e.max_fast(score, carried[0])]
            })[0];
            let sum = e.for_range(zero, seen, 1, &[none], |e, t, carried| {
                let score = weights.load(e, &[t]);
                let less = e.sub(score, max);
                let weight = math::exp_nonpositive(e, less);
                weights.store(e, &[t], weight);
                vec![e.add(carried[0], weight)]
            })[0];
            e.repeat(dim, |e, d| {
                let total = e.for_range(zero, seen, 1, &[none], |e, t, carried| {
                    let (weight, value) = (weights.load(e, &[t]), v.load(e, &[batch, t, group, d]));
                    vec![e.fma(weight, value, carried[0])]
                })[0];
                let value = e.div(total, sum);
                out.store(e, &[batch, step, head, d], value);
            });
        });
    }

    fn cache_update(&self, e: &mut Emitter, operands: &[View]) {
        let [cache, x, pos, slot] = operands else { return };
        nest(e, &x.shape, &mut |e, index| {
            let &[batch, step, head, d] = index else { return };
            let slot = slot.load(e, &[]);
            let slot = e.index(slot, cache.shape[0]);
            let first = pos.load(e, &[batch]);
            let first = e.extsi(first, Elem::I64);
            let at = e.add(first, step);
            let (zero, end) = (e.i64(0), e.i64(cache.shape[2]));
            let (after, before) = (e.cmp(Cmp::Ge, at, zero), e.cmp(Cmp::Lt, at, end));
            let inside = e.and(after, before);
            e.when(inside, |e| {
                let value = x.load(e, index);
                cache.store(e, &[slot, batch, at, head, d], value);
            });
        });
    }

    fn kv_slot(&self, e: &mut Emitter, step: &View) -> Val {
        let op = self.op;
        let (layer, layers, arg) = (op.size("layer"), op.size("layers").max(1), op.size("arg").max(1));
        let step = step.load(e, &[]);
        let step = e.extsi(step, Elem::I64);
        let call = e.mul_const(step, layers);
        let call = e.add_const(call, layer);
        let slot = match op.text("policy") {
            "modulo" => e.div_rem(call, arg.saturating_mul(layers)).1,
            "block" => e.div_rem(call, arg).0,
            "anchor" => {
                let own = e.i64(8 * layers);
                let is_own = e.cmp(Cmp::Lt, call, own);
                let beyond = e.sub(call, own);
                // Non-negative where it is used.
                let zero = e.i64(0);
                let beyond = e.max(beyond, zero);
                let shared = e.div_rem(beyond, layers).1;
                let shared = e.add(shared, own);
                e.select(is_own, call, shared)
            }
            _ => call,
        };
        let slot = e.add_const(slot, op.size("base"));
        e.trunci(slot, Elem::I32)
    }

    fn quantize(&self, e: &mut Emitter, w: &View, codes: &View, scales: &View) {
        e.repeat(w.shape[0], |e, row| {
            let none = e.f32(0.0, 1);
            let max = fold(e, w.shape[1], none, |e, column, max| {
                let value = w.load(e, &[row, column]);
                let value = e.abs(value);
                e.max(max, value)
            });
            let (steps, one) = (e.f32(127.0, 1), e.f32(1.0, 1));
            let scale = e.div(max, steps);
            let is_zero = e.cmp(Cmp::Eq, max, none);
            let scale = e.select(is_zero, one, scale);
            scales.store(e, &[row], scale);
            e.repeat(w.shape[1], |e, column| {
                let value = w.load(e, &[row, column]);
                let value = e.div(value, scale);
                let value = e.round(value);
                let code = math::to_int(e, value);
                codes.store(e, &[row, column], code);
            });
        });
    }

    fn pack(&self, e: &mut Emitter, w: &View, out: &View) {
        let (nr, parts) = (self.op.size("nr"), self.op.size("parts").max(1));
        let (n, k, kp) = (w.shape[0], w.shape[1], out.shape[3]);
        let elem = match w.dtype {
            DType::F32 | DType::I32 => Elem::F32,
            DType::BF16 => Elem::I16,
            DType::I8 | DType::Bool => Elem::I8,
        };
        let (Ok(from), Ok(to)) = (w.base, out.base) else { return };
        nest(e, &out.shape, &mut |e, index| {
            let &[panel, pair, lane, j] = index else { return };
            let (part, within) = e.div_rem(lane, nr / parts);
            let first = e.mul_const(part, n / parts);
            let offset = e.mul_const(panel, nr / parts);
            let row = e.add(first, offset);
            let row = e.add(row, within);
            let column = e.mul_const(pair, kp);
            let column = e.add(column, j);
            let (rows, columns) = (e.i64(n), e.i64(k));
            let (a, b) = (e.cmp(Cmp::Lt, row, rows), e.cmp(Cmp::Lt, column, columns));
            let inside = e.and(a, b);
            let ty = Ty::new(elem, 1);
            let value = e.branch(
                inside,
                &[ty],
                |e| {
                    let place = w.place(e, from, &[row, column]);
                    vec![e.load_raw(place, ty)]
                },
                |e| vec![if elem == Elem::F32 { e.f32(0.0, 1) } else { e.int(0, ty) }],
            );
            let place = out.place(e, to, index);
            e.store_raw(place, value[0]);
        });
    }
}
