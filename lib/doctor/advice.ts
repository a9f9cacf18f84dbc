/** What to do when a native addon does not load, from the words of the system's loader. */

interface Rule {
  readonly when: RegExp;
  readonly advice: (match: RegExpExecArray, build: string) => string;
}

const RULES: readonly Rule[] = [
  {
    when: /interface version/,
    advice: (_, build) =>
      `Install both packages in the same version; in a checkout build both addons again, npm run build:native and ${build}.`,
  },
  {
    when: /No native build was found/i,
    advice: (_, build) => `Build it: ${build}.`,
  },
  {
    when: /version [`'"]?(GLIBC(?:XX)?_[\d.]+)['"]? not found/,
    advice: ([, version], build) =>
      `The binary needs ${version}, which this system is too old for: build it here, ${build}.`,
  },
  {
    when: /(\S+\.so[\w.]*): cannot open shared object file/,
    advice: ([, library]) => `Install the system package that has ${library}.`,
  },
  {
    when: /invalid ELF header|wrong ELF class|Exec format|incompatible architecture|not a valid Win32|mach-o/i,
    advice: (_, build) =>
      `The binary is for another system (was node_modules copied from elsewhere?): build it here, ${build}.`,
  },
  {
    when: /file too short|truncated/i,
    advice: (_, build) => `The file is cut off: build it again, ${build}.`,
  },
  {
    when: /NODE_MODULE_VERSION|did not self-register|undefined symbol: napi/i,
    advice: (_, build) => `It was built for another Node.js: build it again, ${build}.`,
  },
  {
    when: /undefined symbol/,
    advice: (_, build) => `It was built from other sources than these: build it again, ${build}.`,
  },
  {
    when: /permission denied|operation not permitted|failed to map segment/i,
    advice: () => "Allow this user to read it, on a file system that is not mounted noexec.",
  },
];

/** `build`: the command that builds the addon. */
export function loadAdvice(message: string, build: string): string {
  for (const { when, advice } of RULES) {
    const match = when.exec(message);
    if (match) return advice(match, build);
  }
  return `Build it again: ${build}.`;
}
