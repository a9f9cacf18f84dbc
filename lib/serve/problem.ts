/** What goes wrong with a request, in the words of the OpenAI API. */

export class RequestProblem extends Error {
  readonly status: number;
  /** The field of the request that is meant. */
  readonly param: string | null;
  /** The API's word for what clients tell apart. */
  readonly code: string | null;

  constructor(
    status: number,
    message: string,
    param: string | null = null,
    code: string | null = null,
  ) {
    super(message);
    this.name = "RequestProblem";
    this.status = status;
    this.param = param;
    this.code = code;
  }
}

/** The body of an error answer. */
export function problemJson({ status, message, param, code }: RequestProblem): object {
  const type = status >= 500 ? "server_error" : "invalid_request_error";
  return { error: { message, type, param, code } };
}
