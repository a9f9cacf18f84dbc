/** The functions of the package that the commands call. */
import type { DoctorResult } from "../doctor.ts";
import type { EstimateOptions, EstimateResult } from "../estimate.ts";
import type { ExportEvent, ExportOptions, ExportResult } from "../export-types.ts";
import type { LoadedModel, LoadOptions } from "../generate.ts";
import type { ModelServer, ServeOptions } from "../serve.ts";
import type {
  EvaluateEvent,
  EvaluateOptions,
  EvaluateResult,
  InspectOptions,
  InspectResult,
  QuantizeEvent,
  QuantizeOptions,
  QuantizeResult,
  RunHooks,
} from "../types.ts";
import type { VerifyEvent, VerifyOptions, VerifyResult } from "../verify.ts";

export interface Api {
  quantize(options: QuantizeOptions, hooks?: RunHooks<QuantizeEvent>): Promise<QuantizeResult>;
  evaluate(options: EvaluateOptions, hooks?: RunHooks<EvaluateEvent>): Promise<EvaluateResult>;
  inspect(options: InspectOptions): InspectResult | Promise<InspectResult>;
  exportRun(options: ExportOptions, hooks?: RunHooks<ExportEvent>): Promise<ExportResult>;
  verify(options: VerifyOptions, hooks?: RunHooks<VerifyEvent>): Promise<VerifyResult>;
  load(dir: string, options?: LoadOptions): Promise<LoadedModel>;
  serve(options: ServeOptions): Promise<ModelServer>;
  doctor(): DoctorResult;
  estimate(options: EstimateOptions): EstimateResult;
}

/** Loads the package, and with it the native addon; `--help` and misuse are answered without it. */
export type ApiLoader = () => Promise<Api>;

export const loadApi: ApiLoader = () => import("../index.ts");
