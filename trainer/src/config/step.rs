//! The options of one step, as a file of their own.

use std::path::Path;

use altiplano_data::pipeline::StepConfig;
use serde_yaml::{Mapping, Value};

use super::document::Document;
use super::explain::explain;
use crate::error::Result;

/// The step `name` with the options in `file`: a mapping as it stands below the step's name in a
/// data configuration, or one with the name on top. Without a file every option has its default.
///
/// # Errors
/// [`TrainerError::Config`](crate::error::TrainerError::Config) with file, line and column.
pub fn load_step(name: &str, file: Option<&Path>) -> Result<StepConfig> {
    let Some(file) = file else {
        let options = Value::Mapping(Mapping::new());
        return deserialize(name, options).map_err(|error| crate::error::TrainerError::Config {
            place: name.to_owned(),
            message: explain(&error).message,
        });
    };
    let document = Document::read(file)?;
    let (options, on_top) = match &document.value {
        Value::Mapping(map) if map.len() == 1 && map.contains_key(name) => {
            (map[name].clone(), true)
        }
        options => (options.clone(), false),
    };
    let mut step = deserialize(name, options).map_err(|error| {
        let mut problem = explain(&error);
        if !on_top && problem.key.first().is_some_and(|first| first == name) {
            problem.key.remove(0);
        }
        document.fail(problem)
    })?;
    step.make_paths_absolute(file.parent().unwrap_or(Path::new("")));
    Ok(step)
}

fn deserialize(
    name: &str,
    options: Value,
) -> std::result::Result<StepConfig, serde_path_to_error::Error<serde_yaml::Error>> {
    let step = Mapping::from_iter([(Value::from(name), options)]);
    serde_path_to_error::deserialize(Value::Mapping(step))
}
