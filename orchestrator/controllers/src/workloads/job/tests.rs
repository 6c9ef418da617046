//! Random fates of the pods of a Job.
