/** Names of models on the Hub: `owner/name`, with a branch, tag or commit after an @. Both become paths, so both are checked. */
import { expect } from "../errors.ts"

/** A model on the Hub. */
export interface HubName {
  /** `owner/name`. */
  readonly repository: string
  /** As the name or the option says it. */
  readonly revision: string | undefined
}

/** What the Hub takes for an owner or a name; none of them begins or ends with a dot or a dash. */
const word = /^[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?$/
/** Branches and tags: words between slashes, none of which begins with a dot. */
const reference = /^(?=.{1,200}$)[\w-][\w.+-]*(?:\/[\w-][\w.+-]*)*$/

/** Whether a name has the form `owner/name` or `owner/name@revision`. */
export function isHubName(name: string): boolean {
  const [repository = ""] = name.split("@", 1)
  const parts = repository.split("/")
  return parts.length === 2 && parts.every(isWord)
}

const isWord = (part: string): boolean => word.test(part) && !/--|\.\.|\.git$/.test(part)

/** Whether a revision is a whole commit hash, and so means the same files for ever. */
export const isCommit = (revision: string): boolean => /^[0-9a-f]{40}$/.test(revision)

/**
 * Reads a name, and the revision that an option may give too.
 * @throws SelscanError BAD_INPUT for another form, BAD_OPTION for a revision that is none or contradicts the name's
 */
export function parseHubName(name: unknown, given?: unknown): HubName {
  expect(typeof name === "string" && isHubName(name), "BAD_INPUT", () => {
    return `download: expected a name of the form owner/name or owner/name@revision, got ${shownValue(name)}; copy it from the model's page`
  })
  const at = name.indexOf("@")
  const repository = at < 0 ? name : name.slice(0, at)
  const own = at < 0 ? undefined : checkRevision(repository, name.slice(at + 1))
  const revision = given === undefined ? own : checkRevision(repository, given)
  expect(own === undefined || own === revision, "BAD_OPTION", () => {
    return `download ${repository}: expected one revision, got ${own} in the name and ${revision} as an option; leave one out`
  })
  return { repository, revision }
}

function checkRevision(repository: string, revision: unknown): string {
  const good = typeof revision === "string" && reference.test(revision) && !/\.\.|\.lock$/.test(revision)
  expect(good, "BAD_OPTION", () => {
    return `download ${repository}: expected revision to be a branch, a tag or a commit hash, got ${shownValue(revision)}; copy it from the model's page`
  })
  return revision
}

/** A foreign value in a message: cut, and without line ends. */
export const shownValue = (value: unknown): string =>
  typeof value === "string" ? JSON.stringify(value.length > 100 ? `${value.slice(0, 100)}…` : value) : typeof value
