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
//! | `evaluation` | tasks during a training run |
//! | `compare` | several runs side by side |

mod sample;

mod scoring;

mod likelihoods;

mod execution;

mod generations;

mod results;

mod run;

mod evaluation;

mod compare;

pub use compare::{Compared, Comparison, Difference, Run, compare, warnings};
pub use evaluation::{EvalMemory, Evaluation};
pub use execution::Limits;
pub use generations::{NOT_RUN, Sampling};
pub use results::{Figure, Summary, TaskResult, table, to_json};
pub use run::{EvalOptions, OpenTask};
pub use sample::{Measured, Sample};
pub use scoring::EvalModel;
