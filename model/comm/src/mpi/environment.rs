//! Whether a launcher started this process, as which rank, and of which MPI it is.

use std::fmt;

use crate::error::{CommError, Result};

/// The MPI that a launcher belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Open MPI.
    OpenMpi,
    /// MPICH, Intel MPI, MVAPICH, Cray MPICH.
    Mpich,
}

/// A launcher as its variables show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launcher {
    /// How it is called in messages.
    pub name: &'static str,
    /// Whose it is, where the variables say so.
    pub family: Option<Family>,
    /// Ranks it started.
    pub ranks: usize,
    /// Which of them this process is.
    pub rank: usize,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Variables of a launcher: ranks and rank.
struct Variables {
    name: &'static str,
    family: Option<Family>,
    ranks: &'static [&'static str],
    rank: &'static [&'static str],
}

/// In this order: what is started inside a Slurm job by another launcher has Slurm's variables too.
const LAUNCHERS: [Variables; 4] = [
    Variables {
        name: "Open MPI's launcher (OMPI_COMM_WORLD_SIZE)",
        family: Some(Family::OpenMpi),
        ranks: &["OMPI_COMM_WORLD_SIZE"],
        rank: &["OMPI_COMM_WORLD_RANK"],
    },
    Variables {
        name: "MPICH's launcher (PMI_SIZE)",
        family: Some(Family::Mpich),
        ranks: &["PMI_SIZE"],
        rank: &["PMI_RANK"],
    },
    Variables {
        name: "MPICH's launcher (MPI_LOCALNRANKS)",
        family: Some(Family::Mpich),
        ranks: &["MPI_LOCALNRANKS"],
        rank: &["MPI_LOCALRANKID"],
    },
    Variables {
        name: "srun (SLURM_STEP_ID)",
        family: None,
        ranks: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        rank: &["PMIX_RANK", "SLURM_PROCID"],
    },
];

/// Steps of Slurm from here on are none of srun: the batch script, an interactive shell.
const SLURM_SPECIAL_STEPS: u64 = 0xffff_fff0;

impl Launcher {
    /// The launcher that `variable` tells of: a function from names to values, such as those of the
    /// environment.
    ///
    /// # Errors
    /// A variable holds what is no number, or a rank that is none of the ranks.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        for launcher in &LAUNCHERS {
            if launcher.name.starts_with("srun") && !is_srun_step(&variable) {
                continue;
            }
            let first = |names: &[&'static str]| {
                names.iter().find_map(|name| variable(name).map(|value| (*name, value)))
            };
            let Some(ranks) = first(launcher.ranks) else { continue };
            let rank = first(launcher.rank).unwrap_or((launcher.rank[0], String::new()));
            let number = |(name, value): &(&str, String), expected: &str| match value.parse() {
                Ok(number) => Ok(number),
                Err(_) => Err(CommError::Environment {
                    variable: (*name).to_string(),
                    found: value.clone(),
                    expected: expected.to_string(),
                }),
            };
            let count: usize = number(&ranks, "a number of ranks")?;
            let place: usize = number(&rank, "a rank")?;
            if place >= count {
                return Err(CommError::Environment {
                    variable: rank.0.to_string(),
                    found: rank.1,
                    expected: format!("less than the {count} ranks of {}", ranks.0),
                });
            }
            return Ok(Some(Self {
                name: launcher.name,
                family: launcher.family,
                ranks: count,
                rank: place,
            }));
        }
        Ok(None)
    }
}

fn is_srun_step(variable: &impl Fn(&str) -> Option<String>) -> bool {
    let step = variable("SLURM_STEP_ID").and_then(|step| step.parse::<u64>().ok());
    step.is_some_and(|step| step < SLURM_SPECIAL_STEPS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn launcher(variables: &[(&str, &str)]) -> Result<Option<Launcher>> {
        Launcher::from_environment(|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_string())
        })
    }

    #[test]
    fn every_launcher_is_known_by_its_variables() {
        let open = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")];
        let found = launcher(&open).unwrap().unwrap();
        assert_eq!((found.family, found.ranks, found.rank), (Some(Family::OpenMpi), 4, 3));
        let mpich = launcher(&[("PMI_SIZE", "2"), ("PMI_RANK", "0")]).unwrap().unwrap();
        assert_eq!((mpich.family, mpich.ranks, mpich.rank), (Some(Family::Mpich), 2, 0));
        let local =
            launcher(&[("MPI_LOCALNRANKS", "2"), ("MPI_LOCALRANKID", "1")]).unwrap().unwrap();
        assert_eq!((local.family, local.ranks, local.rank), (Some(Family::Mpich), 2, 1));
        let slurm = [("SLURM_STEP_ID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_PROCID", "7")];
        let found = launcher(&slurm).unwrap().unwrap();
        assert_eq!((found.family, found.ranks, found.rank), (None, 8, 7));
        // mpirun inside a Slurm step is mpirun.
        assert_eq!(launcher(&[&slurm[..], &open].concat()).unwrap().unwrap().ranks, 4);
    }

    #[test]
    fn a_batch_script_is_no_rank() {
        let slurm = [("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")];
        assert_eq!(launcher(&slurm).unwrap(), None);
        for step in ["4294967291", "4294967290"] {
            let batch = [&slurm[..], &[("SLURM_STEP_ID", step)]].concat();
            assert_eq!(launcher(&batch).unwrap(), None);
        }
        assert_eq!(launcher(&[]).unwrap(), None);
    }

    #[test]
    fn an_odd_variable_is_named() {
        let message = |variables: &[(&str, &str)]| launcher(variables).unwrap_err().to_string();
        let odd = message(&[("PMI_SIZE", "two"), ("PMI_RANK", "0")]);
        assert!(odd.contains("PMI_SIZE=\"two\"") && odd.contains("number of ranks"), "{odd}");
        let beyond = message(&[("PMI_SIZE", "2"), ("PMI_RANK", "2")]);
        assert!(
            beyond.contains("PMI_RANK") && beyond.contains("less than the 2 ranks"),
            "{beyond}"
        );
        assert!(message(&[("OMPI_COMM_WORLD_SIZE", "2")]).contains("OMPI_COMM_WORLD_RANK"));
    }
}
