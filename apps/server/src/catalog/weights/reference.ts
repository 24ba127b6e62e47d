import { basename, dirname } from 'node:path/posix'
import type { RepoFile } from './hub.ts'

/** What a person asked for: a file on this machine, or a repository of the hub with perhaps a file or a quantization of it. */
export type Reference =
  | { readonly kind: 'file'; readonly path: string }
  | { readonly kind: 'hub'; readonly repo: string; readonly file: string | undefined; readonly quantization: string | undefined }

const REPO = /^[A-Za-z0-9][\w.-]{0,95}\/[A-Za-z0-9][\w.-]{0,95}$/

/** `org/repo`, `org/repo:file.gguf`, `org/repo:Q4_K_M`; everything that begins like a path, or has no slash, is a file. */
export const parseReference = (text: string): Reference => {
  if (/^(?:\.{0,2}\/|~\/|[A-Za-z]:\\)/.test(text) || !text.includes('/')) return { kind: 'file', path: text }
  const colon = text.indexOf(':')
  const repo = colon < 0 ? text : text.slice(0, colon)
  const rest = colon < 0 ? undefined : text.slice(colon + 1)
  if (!REPO.test(repo) || rest === '') {
    throw new Error(
      `${JSON.stringify(text)} is not a model to pull. Write org/repo, org/repo:file.gguf, org/repo:Q4_K_M, or the path of a file (./model.gguf).`,
    )
  }
  if (rest === undefined) return { kind: 'hub', repo, file: undefined, quantization: undefined }
  return rest.toLowerCase().endsWith('.gguf')
    ? { kind: 'hub', repo, file: rest, quantization: undefined }
    : { kind: 'hub', repo, file: undefined, quantization: rest }
}

const QUANTIZATION = /(?:^|[-._])((?:UD-)?(?:I?Q\d(?:_[0-9A-Z]+)*|B?F16|FP16|F32|FP32|MXFP4(?:_MOE)?|TQ\d_\d))$/i
const PART = /-(\d{5})-of-(\d{5})$/

/** `model-Q4_K_M-00001-of-00003.gguf` taken apart. */
export type FileName = {
  /** Without quantization, part and ending. */
  readonly stem: string
  /** Upper case; null where the name has none. */
  readonly quantization: string | null
  readonly part: number
  readonly parts: number
}

export const readFileName = (path: string): FileName => {
  const whole = basename(path).replace(/\.gguf$/i, '')
  const split = PART.exec(whole)
  const name = split === null ? whole : whole.slice(0, split.index)
  const marked = QUANTIZATION.exec(name)
  // Large models keep each quantization in a folder of its name.
  const folder = QUANTIZATION.exec(basename(dirname(path)))
  return {
    stem: marked === null ? name : name.slice(0, marked.index),
    quantization: (marked?.[1] ?? folder?.[1])?.toUpperCase() ?? null,
    part: split === null ? 1 : Number(split[1]),
    parts: split === null ? 1 : Number(split[2]),
  }
}

/** The path of one part of a split model, given any part's. */
export const partPath = (path: string, part: number): string =>
  path.replace(/-\d{5}-of-(\d{5})\.gguf$/i, (_, parts: string) => `-${String(part).padStart(5, '0')}-of-${parts}.gguf`)

/** What runs best on a CPU, first (engines.md, Formats). What is not here has to be asked for by name. */
const PREFERRED = ['Q4_0', 'Q4_K_M', 'Q8_0', 'Q4_K_S', 'Q5_K_M', 'Q6_K']

export type Choice = {
  /** All parts, the first one first. */
  readonly files: readonly RepoFile[]
  /** Why these, for a person; undefined when they were asked for by name. */
  readonly because: string | undefined
}

/** Projectors and importance matrices have the ending of a model and are none. */
const isModel = (file: RepoFile): boolean => /\.gguf$/i.test(file.path) && !/mmproj|imatrix/i.test(basename(file.path))

const list = (repo: string, files: readonly RepoFile[]): string => files.map((file) => `  ${repo}:${file.path}`).join('\n')

const MAX_PARTS = 1000

/** Which files of a repository to fetch. */
export const chooseFiles = (
  repo: string,
  files: readonly RepoFile[],
  wanted: { readonly file: string | undefined; readonly quantization: string | undefined },
): Choice => {
  const firsts = files.filter((file) => isModel(file) && readFileName(file.path).part === 1)
  if (firsts.length === 0 && wanted.file === undefined) {
    const safetensors = files.some((file) => file.path.endsWith('.safetensors'))
    throw new Error(
      `${repo} has no GGUF file${safetensors ? '; it holds safetensors, which the embedded engine does not read. Look for a repository of the same model whose name ends in -GGUF' : ''}.`,
    )
  }

  const withParts = (first: RepoFile, because: string | undefined): Choice => {
    const { parts } = readFileName(first.path)
    if (parts < 1 || parts > MAX_PARTS) throw new Error(`${repo}:${first.path} claims to be one of ${parts} parts.`)
    const found = Array.from({ length: parts }, (_, index) => {
      const path = parts === 1 ? first.path : partPath(first.path, index + 1)
      const file = files.find((candidate) => candidate.path === path)
      if (file === undefined) throw new Error(`${repo} is not complete: ${path} is missing.`)
      return file
    })
    return { files: found, because }
  }

  if (wanted.file !== undefined) {
    const first = partPath(wanted.file, 1)
    const file = files.find((candidate) => candidate.path === first)
    if (file === undefined) {
      throw new Error(`${repo} has no file ${wanted.file}.${firsts.length === 0 ? '' : ` It has:\n${list(repo, firsts)}`}`)
    }
    return withParts(file, undefined)
  }

  const pick = (quantization: string): readonly RepoFile[] => firsts.filter((file) => readFileName(file.path).quantization === quantization)
  const several = (candidates: readonly RepoFile[]): Error =>
    new Error(`${repo} has several models; name one of these files:\n${list(repo, candidates)}`)

  if (wanted.quantization !== undefined) {
    const candidates = pick(wanted.quantization.toUpperCase())
    if (candidates.length > 1) throw several(candidates)
    if (candidates[0] === undefined) throw new Error(`${repo} has no ${wanted.quantization}. It has:\n${list(repo, firsts)}`)
    return withParts(candidates[0], undefined)
  }
  if (firsts.length === 1 && firsts[0] !== undefined) return withParts(firsts[0], 'it is the only one')
  for (const quantization of PREFERRED) {
    const candidates = pick(quantization)
    if (candidates.length > 1) throw several(candidates)
    if (candidates[0] !== undefined) {
      return withParts(candidates[0], `among ${firsts.length} files ${quantization} runs best on a CPU; others can be asked for by name`)
    }
  }
  throw several(firsts)
}

/** Names that say nothing about the model. */
const GENERIC = /^(?:ggml-)?(?:model|weights|consolidated|unsloth)?$/

/** A name as clients write it: lower case, no vendor, no quantisation (data-plane.md 5.1). */
export const modelName = (path: string, repo: string | undefined, stated: string | null = null): string => {
  const bare = (text: string): string =>
    text
      .toLowerCase()
      .replace(/[-._]?gguf$/, '')
      .replace(/[^a-z0-9._-]+/g, '-')
      .replace(/^[^a-z0-9]+|[-._]+$/g, '')
      .slice(0, 128)
  const { stem } = readFileName(path)
  const own = bare(stem)
  if (!GENERIC.test(own)) return own
  // The repository's name, or what the file calls itself.
  const other = bare(readFileName(repo === undefined ? (stated ?? '') : basename(repo)).stem)
  if (other === '') throw new Error(`${basename(path)} gives no name for the model; choose one with --name.`)
  return other
}
