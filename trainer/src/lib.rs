//! The only crate that sees both text and tensors: configuration, optimizer, checkpoints, the
//! training loop and the commands of the binary.
//!
//! A module uses only the modules listed before it:
//!
//! | module | subject |
//! |---|---|
//! | [`error`] | what can go wrong |
//! | [`fatal_signals`] | signals that would end the process without a word |
//! | [`signals`] | signals that ask a run to end |
//! | [`config`] | YAML files, overrides, checks |
//! | [`world`] | the ranks of a run: what they tell each other and agree on |
//! | [`launch`] | ranks started, as processes of a launcher or as threads |
//! | [`timing`] | how long work takes where a device computes |
//! | [`peak`] | the peak rate of a device, for `mfu` |
//! | [`schedule`] | the learning rate of a step |
//! | [`metrics`] | `metrics.jsonl`, peak memory |
//! | [`outlier_window`] | when a loss or a gradient norm stands out |
//! | [`change_log`] | `changes.jsonl`: settings that changed in a run |
//! | [`tensorboard`] | event files for TensorBoard |
//! | [`plot`] | `loss.svg` and `loss.png` |
//! | [`progress`] | what training shows on the terminal |
//! | [`checkpoint`] | the state of a run on disk |
//! | [`starting_weights`] | the weights of step 0 |
//! | [`adamw`] | the update of all parameters |
//! | [`shards`] | copies of a model: gradients exchanged, the optimizer's state and the weights split |
//! | [`grad_clip`] | the global norm of the gradient |
//! | [`step_record`] | what the ranks of a step tell each other |
//! | [`train_step`] | one optimizer step |
//! | [`validation`] | loss on held-out documents during training |
//! | [`text_generation`] | prompts to texts, stop strings |
//! | [`prompts`] | prompts from files |
//! | [`train_loop`] | a whole run: started, resumed, extended |
//! | [`batch_dump`] | the batches a run will see, written out |
//! | [`trained_model`] | a checkpoint opened for reading |
//! | [`chat_session`] | a conversation with a model, within the context |
//! | [`sft`] | supervised fine-tuning: a run on examples |
//! | [`interop`] | models of other programs: export and import |
//! | [`text_model`] | a model opened for generating text |
//! | [`json_log`] | files of JSON lines that grow by what was paid for |
//! | [`serving`] | a checkpoint opened for serving |
//! | [`endpoint`] | what answers requests: a server or a checkpoint |
//! | [`judge`] | answers judged by a model |
//! | [`self_instruct`] | instructions written by a model |
//! | [`eval_documents`] | documents to score, from files and data directories |
//! | [`eval`] | bits per byte on documents |
//! | [`eval_tasks`] | tasks of the LLaMA paper, scored and compared |
//! | [`estimate`] | memory, FLOPs and days of a configuration before it runs |
//! | [`mod@bench`] | speed and memory of training, attention and generation |
//! | [`commands`] | the command line |

pub mod error;

pub mod fatal_signals;

pub mod signals;

pub mod config;

pub mod world;

pub mod launch;

pub mod timing;

pub mod peak;

pub mod schedule;

pub mod metrics;

pub mod outlier_window;

pub mod change_log;

pub mod tensorboard;

pub mod plot;

pub mod progress;

pub mod checkpoint;

pub mod starting_weights;

pub mod adamw;

pub mod shards;

pub mod grad_clip;

pub mod step_record;

pub mod train_step;

pub mod validation;

pub mod text_generation;

pub mod prompts;

pub mod train_loop;

pub mod batch_dump;

pub mod trained_model;

pub mod chat_session;

pub mod sft;

pub mod interop;

pub mod text_model;

pub mod json_log;

pub mod serving;

pub mod endpoint;

pub mod judge;

pub mod self_instruct;

pub mod eval_documents;

pub mod eval;

pub mod eval_tasks;

pub mod estimate;

pub mod bench;

pub mod commands;
