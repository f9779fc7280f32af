//! Built-in reasoning tasks. A problem is a function of (seed, index), so there is no file and no end, and any problem can be
//! made again.
//!
//! A problem is text with a target for some of its characters; it begins with [`START`]. In the *aligned* tasks (prefix parity,
//! running sum) each character has its own target; in the others the answer follows the prompt, and each answer character is
//! the target of the character before it. Characters are ids by their place in [`ALPHABET`].
use crate::Error;
use crate::random::philox4x32;
use rdc_ir::IGNORED_LABEL;

/// The characters of all tasks, by id. The first 40 are enough for the tasks of bits, digits and letters.
pub const ALPHABET: &str = "0123456789abcdefghijklmnopqrstuvwxyz^=;?+|.[] MAXINEDS#GRLU\n";
/// Begins a problem.
pub const START: char = '^';

/// A task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Parity of the bits so far.
    Parity,
    /// Sum of the digits so far, modulo 10.
    RunningSum,
    /// Parity of all bits, asked once: `0110=0`.
    ParityQuestion,
    /// Chains of assignments in any order: `b=a;a=3;c=b;?c=3`.
    Chain,
    /// p-hop induction: which letter follows, p times over, the last earlier occurrence.
    Hop,
    /// Addition of two numbers, least digit first: `31+42=730`.
    Addition,
    /// Nested MAX, MIN, MED and SM (sum modulo 10) of digits.
    ListOps,
    /// The shortest way through a maze without loops, as moves.
    Maze,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its characters as ids.
    pub ids: Vec<i32>,
    /// For each, the id that is to be predicted there, or [`IGNORED_LABEL`].
    pub labels: Vec<i32>,
    /// How many steps in sequence the hardest answer takes.
    pub hops: u32,
}

impl Task {
    /// Every task.
    pub const ALL: [Task; 8] = [
        Task::Parity,
        Task::RunningSum,
        Task::ParityQuestion,
        Task::Chain,
        Task::Hop,
        Task::Addition,
        Task::ListOps,
        Task::Maze,
    ];
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Task::Parity => "parity",
            Task::RunningSum => "runsum",
            Task::ParityQuestion => "parity_q",
            Task::Chain => "chain",
            Task::Hop => "phop",
            Task::Addition => "add",
            Task::ListOps => "listops",
            Task::Maze => "maze",
        }
    }
    /// The task of a name.
    ///
    /// # Errors
    /// Names the tasks there are.
    pub fn parse(name: &str) -> Result<Task, Error> {
        Task::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| {
            let known: Vec<&str> = Task::ALL.iter().map(|t| t.name()).collect();
            Error::Input(format!("there is no task {name:?}; tasks are {}", known.join(", ")))
        })
    }
    /// The largest size a problem may have: characters, digits, variables, depth or side, as the task counts.
    pub fn largest(self) -> usize {
        match self {
            Task::Chain => 26,
            Task::ListOps => 6,
            Task::Maze => 40,
            _ => 4096,
        }
    }
    /// Problem `index` of a seed, of a size that the task counts in its own way (bits, digits, variables, letters, depth,
    /// side). Where the size is a bound (questions, additions), it is drawn up to it.
    pub fn problem(self, size: usize, seed: u64, index: u64) -> Problem {
        let mut draws = Draws::new(seed, self, index);
        let size = size.clamp(1, self.largest());
        match self {
            Task::Parity => aligned(&mut draws, size, 2),
            Task::RunningSum => aligned(&mut draws, size, 10),
            Task::ParityQuestion => {
                let n = 1 + draws.below(size);
                let bits: Vec<usize> = (0..n).map(|_| draws.below(2)).collect();
                question(&format!("{}=", digits(&bits)), &(bits.iter().sum::<usize>() % 2).to_string(), n as u32)
            }
            Task::Chain => chain(&mut draws, size),
            Task::Hop => hop(&mut draws, size.max(2)),
            Task::Addition => addition(&mut draws, size),
            Task::ListOps => listops(&mut draws, size),
            Task::Maze => maze(&mut draws, size.max(2)),
        }
    }
}

/// The id of a character; of one that is in no task, that of a space.
pub fn id(c: char) -> i32 {
    ALPHABET.chars().position(|a| a == c).or_else(|| ALPHABET.chars().position(|a| a == ' ')).unwrap_or(0) as i32
}

/// The text of ids.
pub fn text(ids: &[i32]) -> String {
    ids.iter().filter_map(|&i| ALPHABET.chars().nth(usize::try_from(i).ok()?)).collect()
}

/// Draws in sequence for one problem.
pub struct Draws {
    key: [u32; 2],
    index: u64,
    task: u32,
    taken: u32,
    words: [u32; 4],
}

impl Draws {
    /// The draws of a problem.
    pub fn new(seed: u64, task: Task, index: u64) -> Draws {
        Draws { key: [seed as u32, (seed >> 32) as u32], index, task: task as u32, taken: 0, words: [0; 4] }
    }
    fn next(&mut self) -> u32 {
        let lane = (self.taken % 4) as usize;
        if lane == 0 {
            let counter = [self.index as u32, (self.index >> 32) as u32, self.taken / 4, 0x7461_0000 | self.task];
            self.words = philox4x32(counter, self.key);
        }
        self.taken += 1;
        self.words[lane]
    }
    /// A number in `0..n`; n is at least 1 and far below 2^32, so the bias of the product is below 2^-20.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.next()) * n as u64) >> 32) as usize
    }
    /// Whether an event of probability p happens.
    pub fn chance(&mut self, p: f64) -> bool {
        f64::from(self.next()) < p * 4_294_967_296.0
    }
}

fn digits(values: &[usize]) -> String {
    values.iter().map(|v| v.to_string()).collect()
}

fn aligned(draws: &mut Draws, size: usize, modulus: usize) -> Problem {
    let (mut ids, mut labels, mut sum) = (vec![id(START)], vec![IGNORED_LABEL], 0);
    for _ in 0..size {
        let value = draws.below(modulus);
        sum = (sum + value) % modulus;
        // Digits are the first characters of the alphabet.
        ids.push(value as i32);
        labels.push(sum as i32);
    }
    Problem { ids, labels, hops: size as u32 }
}

/// A prompt and its answer, as a row of next-character targets.
fn question(prompt: &str, answer: &str, hops: u32) -> Problem {
    let ids: Vec<i32> = std::iter::once(START).chain(prompt.chars()).chain(answer.chars()).map(id).collect();
    let (prompt, total) = (1 + prompt.chars().count(), ids.len());
    let mut labels = vec![IGNORED_LABEL; total];
    labels[prompt - 1..total - 1].copy_from_slice(&ids[prompt..]);
    Problem { ids, labels, hops }
}

fn chain(draws: &mut Draws, size: usize) -> Problem {
    let mut letters: Vec<char> = ('a'..='z').collect();
    shuffle(draws, &mut letters);
    letters.truncate(size);
    let (mut values, mut depths, mut assignments) = (Vec::new(), Vec::new(), Vec::new());
    for (i, &letter) in letters.iter().enumerate() {
        if i == 0 || draws.chance(0.15) {
            let value = draws.below(10).to_string();
            assignments.push(format!("{letter}={value};"));
            values.push(value);
            depths.push(1);
        } else {
            let from = if draws.chance(0.8) { i - 1 } else { draws.below(i) };
            assignments.push(format!("{letter}={};", letters[from]));
            values.push(values[from].clone());
            depths.push(depths[from] + 1);
        }
    }
    shuffle(draws, &mut assignments);
    let asked = draws.below(letters.len());
    question(&format!("{}?{}=", assignments.concat(), letters[asked]), &values[asked], depths[asked])
}

fn shuffle<T>(draws: &mut Draws, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, draws.below(i + 1));
    }
}

/// Four hops over four letters (Saunshi et al., "Reasoning with latent thoughts", 2025).
fn hop(draws: &mut Draws, size: usize) -> Problem {
    const HOPS: u32 = 4;
    let letters: Vec<usize> = (0..size).map(|_| draws.below(4)).collect();
    let mut at = Some(size - 1);
    for _ in 0..HOPS {
        at = at.and_then(|i| (1..=i).rev().find(|&j| letters[j - 1] == letters[i] && j - 1 < i));
    }
    let letter = |v: usize| char::from(b'a' + v as u8);
    let prompt: String = letters.iter().map(|&v| letter(v)).collect();
    let answer = at.map_or('.', |i| letter(letters[i]));
    question(&format!("{prompt}|{HOPS}="), &answer.to_string(), HOPS)
}

/// The steps of an addition are its longest run of carries, and one.
fn addition(draws: &mut Draws, size: usize) -> Problem {
    let n = 1 + draws.below(size);
    let (a, b): (Vec<usize>, Vec<usize>) = (0..n).map(|_| (draws.below(10), draws.below(10))).unzip();
    let (mut sum, mut carry, mut run, mut longest) = (Vec::new(), 0, 0, 0);
    for (x, y) in a.iter().zip(&b) {
        let total = x + y + carry;
        sum.push(total % 10);
        carry = total / 10;
        run = if carry == 1 { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    sum.push(carry);
    question(&format!("{}+{}=", digits(&a), digits(&b)), &digits(&sum), longest + 1)
}

fn listops(draws: &mut Draws, depth: usize) -> Problem {
    fn expression(draws: &mut Draws, depth: usize, top: bool) -> (String, usize, u32) {
        if depth == 0 || !top && draws.chance(0.3) {
            let value = draws.below(10);
            return (value.to_string(), value, 0);
        }
        let op = ["MAX", "MIN", "MED", "SM"][draws.below(4)];
        let count = 2 + draws.below(3);
        let parts: Vec<_> = (0..count).map(|_| expression(draws, depth - 1, false)).collect();
        let mut values: Vec<usize> = parts.iter().map(|p| p.1).collect();
        values.sort_unstable();
        let value = match op {
            "MAX" => values[count - 1],
            "MIN" => values[0],
            "MED" => values[count / 2],
            _ => values.iter().sum::<usize>() % 10,
        };
        let inner: Vec<&str> = parts.iter().map(|p| p.0.as_str()).collect();
        let hops = parts.iter().map(|p| p.2).max().unwrap_or(0) + 1;
        (format!("[{op} {} ]", inner.join(" ")), value, hops)
    }
    let (text, value, hops) = expression(draws, depth, true);
    question(&format!("{text} ="), &value.to_string(), hops)
}

/// A maze of n by n cells, a tree dug by a depth-first walk, from S to G.
fn maze(draws: &mut Draws, n: usize) -> Problem {
    let side = 2 * n + 1;
    let mut walls = vec![vec!['#'; side]; side];
    walls[1][1] = ' ';
    let moves = [(0i64, 1i64, 'R'), (1, 0, 'D'), (0, -1, 'L'), (-1, 0, 'U')];
    let inside = |y: i64, x: i64| (0..n as i64).contains(&y) && (0..n as i64).contains(&x);
    let cell = |v: i64| (2 * v + 1) as usize;
    let mut walk = vec![(0i64, 0i64)];
    while let Some(&(y, x)) = walk.last() {
        let open: Vec<(i64, i64)> = moves
            .iter()
            .map(|m| (y + m.0, x + m.1))
            .filter(|&(a, b)| inside(a, b) && walls[cell(a)][cell(b)] == '#')
            .collect();
        if open.is_empty() {
            walk.pop();
            continue;
        }
        let next = open[draws.below(open.len())];
        walls[cell(next.0)][cell(next.1)] = ' ';
        walls[(y + next.0 + 1) as usize][(x + next.1 + 1) as usize] = ' ';
        walk.push(next);
    }
    let place = |k: usize| ((k / n) as i64, (k % n) as i64);
    let goal = draws.below(n * n);
    // Another cell than the goal.
    let start = (goal + 1 + draws.below(n * n - 1)) % (n * n);
    let (start, goal) = (place(start), place(goal));
    let path = path(&walls, start, goal, &moves, &inside);
    walls[cell(start.0)][cell(start.1)] = 'S';
    walls[cell(goal.0)][cell(goal.1)] = 'G';
    let rows: Vec<String> = walls.iter().map(|row| row.iter().collect()).collect();
    let hops = path.len() as u32;
    question(&format!("{}\n", rows.join("\n")), &path, hops)
}

type Cell = (i64, i64);

/// The moves from one cell to another, breadth first.
fn path(
    walls: &[Vec<char>],
    start: Cell,
    goal: Cell,
    moves: &[(i64, i64, char)],
    inside: &dyn Fn(i64, i64) -> bool,
) -> String {
    let mut from: std::collections::HashMap<Cell, (Cell, char)> = std::collections::HashMap::new();
    let mut queue = std::collections::VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for &(dy, dx, name) in moves {
            let next = (at.0 + dy, at.1 + dx);
            let open =
                inside(next.0, next.1) && walls[(2 * at.0 + 1 + dy) as usize][(2 * at.1 + 1 + dx) as usize] == ' ';
            if open && next != start && !from.contains_key(&next) {
                from.insert(next, (at, name));
                queue.push_back(next);
            }
        }
    }
    let (mut at, mut names) = (goal, Vec::new());
    while let Some(&(before, name)) = from.get(&at) {
        names.push(name);
        at = before;
    }
    names.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(task: Task, size: usize, index: u64) -> (String, String) {
        let problem = task.problem(size, 1, index);
        assert_eq!(problem.ids.len(), problem.labels.len());
        let targets: Vec<i32> = problem.labels.iter().copied().filter(|&l| l != IGNORED_LABEL).collect();
        (text(&problem.ids), text(&targets))
    }

    #[test]
    fn problems_are_a_function_of_seed_and_index() {
        for task in Task::ALL {
            let size = 5;
            assert_eq!(task.problem(size, 3, 8), task.problem(size, 3, 8));
            let others = (0..20).filter(|&i| task.problem(size, 3, i) == task.problem(size, 4, i)).count();
            assert!(others < 15, "{} hardly depends on its seed", task.name());
            assert_eq!(Task::parse(task.name()).unwrap(), task);
        }
        assert!(Task::parse("sudoku").unwrap_err().to_string().contains("parity"));
    }

    #[test]
    fn answers_are_right() {
        for i in 0..200 {
            let (input, labels) = shown(Task::Parity, 16, i);
            let mut sum = 0;
            for (c, l) in input[1..].chars().zip(labels.chars()) {
                sum ^= u32::from(c == '1');
                assert_eq!(l.to_digit(10), Some(sum));
            }
            let (input, answer) = shown(Task::Addition, 8, i);
            let (a, rest) = input[1..].split_once('+').unwrap();
            let (b, sum) = rest.split_once('=').unwrap();
            let value = |s: &str| s.chars().rev().collect::<String>().parse::<u64>().unwrap();
            assert_eq!(value(a) + value(b), value(sum));
            assert_eq!(answer, sum);
            let (input, answer) = shown(Task::Chain, 10, i);
            let (assignments, question) = input[1..].split_once('?').unwrap();
            let mut name = question[..1].to_string();
            while let Some(found) = assignments.split(';').find_map(|a| a.strip_prefix(&format!("{name}="))) {
                name = found.to_string();
            }
            assert_eq!(name, answer);
        }
    }

    #[test]
    fn the_way_through_a_maze_leads_to_the_goal() {
        for i in 0..50 {
            let problem = Task::Maze.problem(5, 2, i);
            let (shown, answer) =
                (text(&problem.ids), text(&problem.labels.iter().copied().filter(|&l| l >= 0).collect::<Vec<_>>()));
            let rows: Vec<Vec<char>> = shown[1..].lines().take(11).map(|l| l.chars().collect()).collect();
            let find = |c: char| {
                rows.iter().enumerate().find_map(|(y, r)| r.iter().position(|&k| k == c).map(|x| (y, x))).unwrap()
            };
            let (mut y, mut x) = find('S');
            for c in answer.chars() {
                for _ in 0..2 {
                    match c {
                        'R' => x += 1,
                        'L' => x -= 1,
                        'D' => y += 1,
                        _ => y -= 1,
                    }
                    assert_ne!(rows[y][x], '#');
                }
            }
            assert_eq!((y, x), find('G'));
            assert_eq!(problem.hops as usize, answer.len());
        }
    }

    #[test]
    fn listops_and_hops() {
        for i in 0..100 {
            let (input, answer) = shown(Task::ListOps, 3, i);
            assert!(input.starts_with("^[") && input[1..].contains(" ="));
            assert_eq!(answer.len(), 1);
            let (input, answer) = shown(Task::Hop, 48, i);
            let letters: Vec<char> = input[1..].chars().take(48).collect();
            let mut at = Some(47usize);
            for _ in 0..4 {
                // The place after the last earlier occurrence of the same letter.
                at = at.and_then(|i| (0..i).rev().find(|&j| letters[j] == letters[i]).map(|j| j + 1));
            }
            assert_eq!(answer.chars().next(), at.map(|i| letters[i]).or(Some('.')));
        }
    }
}
