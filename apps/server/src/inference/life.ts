import type { Model } from '../catalog/model.ts'
import { instantToDate } from '../kit/clock.ts'

/**
 * What every answer of a deprecated model says beside itself, as names and values in turn: since when (RFC 9745), until when (RFC 8594),
 * and which model comes after it (RFC 5829).
 */
export const lifeHeaders = ({ deprecatedAt, endOfLifeAt, successor }: Model): readonly string[] => [
  ...(deprecatedAt === null ? [] : ['deprecation', `@${Math.floor(deprecatedAt / 1000)}`]),
  ...(endOfLifeAt === null ? [] : ['sunset', instantToDate(endOfLifeAt).toUTCString()]),
  ...(successor === null ? [] : ['link', `</v1/models/${successor}>; rel="successor-version"`]),
]
