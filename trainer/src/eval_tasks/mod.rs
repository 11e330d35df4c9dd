//! Tasks of the LLaMA paper, scored: the examples of [`altiplano_data::eval_tasks`] through the
//! inference engine, many at a time.
//!
//! A module uses only the modules listed before it:
//!
//! | module | subject |
//! |---|---|
//! | `sample` | what came of an example, as a line of a file |
//! | `scoring` | likelihoods of continuations through the engine |
//! | `likelihoods` | choices and whole texts |
//! | `execution` | programs that a model wrote, run apart |
//! | `generations` | generated answers and programs |
//! | `results` | figures, their table and the harness's layout |
//! | `run` | a task from its files to its figures |
//! | `compare` | several runs side by side |

mod sample;

mod scoring;

mod likelihoods;

mod execution;

mod generations;

mod results;

mod run;

mod compare;

pub use compare::{Compared, Comparison, Difference, Run, compare, warnings};
pub use execution::Limits;
pub use generations::{NOT_RUN, Sampling};
pub use results::{Figure, Summary, TaskResult, higher_is_better, table, to_json};
pub use run::{EvalOptions, OpenTask};
pub use sample::{Measured, Sample};
