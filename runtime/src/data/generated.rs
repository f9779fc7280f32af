//! Rows of a built-in task.
use super::tasks::{Draws, Problem, START, Task, id};
use super::{Dataset, tasks};
use crate::Error;
use rdc_ir::IGNORED_LABEL;

/// Rows made on the fly. A row is filled with problems; in an aligned task a problem may end at any place and the next begin
/// (`restart`), which teaches more than one length, and where a problem begins.
#[derive(Clone, Debug)]
pub struct Generated {
    task: Task,
    size: usize,
    restart: f64,
    seed: u64,
}

impl Generated {
    /// Rows of problems of a size.
    pub fn new(task: Task, size: usize, restart: f64, seed: u64) -> Generated {
        Generated { task, size, restart, seed }
    }
    /// Problem `index` on its own.
    pub fn problem(&self, index: u64) -> Problem {
        self.task.problem(self.size, self.seed, index)
    }
    fn aligned(&self) -> Option<i32> {
        match self.task {
            Task::Parity => Some(2),
            Task::RunningSum => Some(10),
            _ => None,
        }
    }
}

impl Dataset for Generated {
    fn rows(&self) -> Option<u64> {
        None
    }
    fn row(&self, index: u64, ids: &mut [i32], labels: &mut [i32]) -> Result<(), Error> {
        if let Some(modulus) = self.aligned().filter(|_| self.restart > 0.0) {
            let mut draws = Draws::new(self.seed, self.task, index);
            let mut sum = 0;
            for (i, (id_, label)) in ids.iter_mut().zip(labels).enumerate() {
                if i == 0 || draws.chance(self.restart) {
                    (*id_, *label, sum) = (id(START), IGNORED_LABEL, 0);
                } else {
                    let value = draws.below(modulus as usize) as i32;
                    sum = (sum + value) % modulus;
                    (*id_, *label) = (value, sum);
                }
            }
            return Ok(());
        }
        // Problems that fit, one after the other; a row has at most as many as tokens.
        let (mut at, length) = (0, ids.len());
        labels.fill(IGNORED_LABEL);
        ids.fill(id(START));
        for k in 0..length as u64 {
            let problem = self.problem(index.wrapping_mul(length as u64).wrapping_add(k));
            let n = problem.ids.len();
            if at + n > length {
                if at == 0 {
                    return Err(Error::Input(format!(
                        "a problem of {} of size {} has {n} tokens, a row {length}",
                        self.task.name(),
                        self.size
                    )));
                }
                break;
            }
            ids[at..at + n].copy_from_slice(&problem.ids);
            labels[at..at + n].copy_from_slice(&problem.labels);
            at += n;
        }
        Ok(())
    }
    fn vocabulary(&self) -> usize {
        match self.task {
            Task::Parity | Task::RunningSum | Task::ParityQuestion | Task::Chain => 40,
            _ => tasks::ALPHABET.chars().count(),
        }
    }
    fn describe(&self) -> String {
        format!("task {} of size {}", self.task.name(), self.size)
    }
}
