/** Names of what a run leaves in its output folder beside the checkpoint. */

/** Folder of the run state. */
export const RUN_FOLDER = "aq";

/** Files of the report, in the run folder. */
export const REPORT_FILES = { json: "report.json", html: "report.html" } as const;
