/** What goes wrong with a request, in the words of the OpenAI API. */

export class RequestProblem extends Error {
  readonly status: number;
  /** The field of the request that is meant. */
  readonly param: string | null;

  constructor(status: number, message: string, param: string | null = null) {
    super(message);
    this.name = "RequestProblem";
    this.status = status;
    this.param = param;
  }
}

/** The body of an error answer. */
export function problemJson({ status, message, param }: RequestProblem): object {
  const type = status >= 500 ? "server_error" : "invalid_request_error";
  return { error: { message, type, param, code: null } };
}
