//! What a source's documents go through, cut into stages at the steps that need all documents.

use std::path::Path;

use super::holdout::{Holdout, HoldoutConfig};
use super::source_config::SourceConfig;
use super::step_config::BuiltStep;
use crate::dedup::{GlobalDecision, GlobalStep};
use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::step::Step;

/// The steps of one source.
pub(super) struct Chain {
    /// At least one.
    pub stages: Vec<Stage>,
}

/// Steps between two decisions that need all documents.
pub(super) struct Stage {
    /// The decision before it; none for the first stage, which reads the raw files.
    pub opening: Option<Global>,
    /// Steps over single documents.
    pub steps: Vec<DocumentStep>,
    /// What the result depends on, besides the stages before it.
    pub identity: Fingerprint,
}

impl Stage {
    fn after(opening: Option<Global>) -> Self {
        Self { opening, steps: Vec::new(), identity: Fingerprint::default() }
    }

    /// Whether a step of it uses the templates that dumps define.
    pub fn wants_templates(&self) -> bool {
        self.steps.iter().any(|step| step.step.wants_templates())
    }
}

/// A step over single documents.
pub(super) struct DocumentStep {
    pub name: &'static str,
    pub version: u32,
    pub step: Box<dyn Step>,
}

/// What stands between two stages, since it needs all documents of the source.
pub(super) enum Global {
    /// A step whose filter keeps, changes or drops documents.
    Step { name: &'static str, version: u32, step: Box<dyn GlobalStep> },
    /// The cut between training and validation. It parts documents and drops none, so it has
    /// neither counters nor a row in the manifest.
    Holdout(Holdout),
}

impl Global {
    /// What writes signatures and decides, of either kind.
    pub fn decision(&self) -> &dyn GlobalDecision {
        match self {
            Self::Step { step, .. } => &**step,
            Self::Holdout(holdout) => holdout,
        }
    }

    /// Name for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Step { name, .. } => name,
            Self::Holdout(_) => "holdout",
        }
    }
}

impl Chain {
    /// Makes the steps of `source`, reading their models and lists. Documents go below `output`.
    pub fn build(source: &SourceConfig, holdout: &HoldoutConfig, output: &Path) -> Result<Self> {
        let (kind, options) = source.kind()?;
        let mut identity = Fingerprint::of(&format!("{kind} {}", options.version()));
        // The steps have identities of their own.
        let reader = SourceConfig { steps: Vec::new(), ..source.clone() };
        identity.json(&reader);
        let mut stages = vec![Stage::after(None)];
        for (index, config) in source.steps.iter().enumerate() {
            let (name, version) = config.name()?;
            let key = format!("{}.steps.{index}", source.key());
            let step_key = format!("{key}.{name}");
            let built = config.build(&key).map_err(|error| error.of_key(&step_key))?;
            if let BuiltStep::Global(step) = built {
                close(&mut stages, &mut identity);
                let opening = Some(Global::Step { name, version, step });
                stages.push(Stage::after(opening));
            } else if let (BuiltStep::Document(step), Some(stage)) = (built, stages.last_mut()) {
                stage.steps.push(DocumentStep { name, version, step });
            }
            identity.part(config.identity().map_err(|error| error.of_key(&step_key))?);
        }
        if holdout.bytes_per_source.is_some() {
            close(&mut stages, &mut identity);
            let holdout = Holdout::new(holdout, &source.name, output);
            let opening = Some(Global::Holdout(holdout));
            stages.push(Stage::after(opening));
        }
        identity.json(holdout);
        close(&mut stages, &mut identity);
        Ok(Self { stages })
    }

    /// The decision after `stage`; none after the last.
    pub fn closing(&self, stage: usize) -> Option<&Global> {
        self.stages.get(stage + 1)?.opening.as_ref()
    }

    /// Names and versions of all steps, for the manifest.
    pub fn steps(&self) -> Vec<(&'static str, u32)> {
        let mut steps = Vec::new();
        for stage in &self.stages {
            if let Some(Global::Step { name, version, .. }) = &stage.opening {
                steps.push((*name, *version));
            }
            steps.extend(stage.steps.iter().map(|step| (step.name, step.version)));
        }
        steps
    }
}

/// Ends the last of `stages`: all of `identity` is about it.
fn close(stages: &mut [Stage], identity: &mut Fingerprint) {
    if let Some(stage) = stages.last_mut() {
        stage.identity = std::mem::take(identity);
    }
}
